//! What crosses a process or package boundary: the harness and the integration tests.
