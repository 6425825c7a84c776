"""The proofs, by letter as in the list that ``run --help`` prints."""
