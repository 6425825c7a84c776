use super::*;

/// The bytes of the future that a call gives.
fn size<A, F>(_: impl Fn(A) -> F) -> usize {
    size_of::<F>()
}

/// A little more than it is. What few requests need is boxed where it is called, and takes no room here.
const FUTURE_MAX_BYTES: usize = 6 << 10;

/// Each request has one, written and read anew: its bytes are cache lines that others lose.
#[test]
fn the_future_of_a_request_is_small() {
    let serve = size(|(gateway, request): (&'static Gateway, Request<Incoming>)| gateway.serve(request));
    println!("{serve} bytes");
    assert!(serve <= FUTURE_MAX_BYTES, "{serve} bytes");
}
