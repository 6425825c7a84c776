//! Pure routing policy: who holds which prefix, what each choice costs in seconds, and a decision that explains itself.
