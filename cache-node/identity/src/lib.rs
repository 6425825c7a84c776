//! Pure prefix identity: the prompt chain of a request body.
