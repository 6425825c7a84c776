//! Slow start: an endpoint that comes back is not given at once what it lacked.
//!
//! After a health failure or an ejection an endpoint has nothing in flight and looks like the best choice to everyone, so
//! that a single wave of requests would meet an engine that is barely up (Envoy's slow start mode and linkerd's
//! probation are for the same). Its share of the load ramps up linearly instead.

/// Most requests in flight for an endpoint that came back `since_s` seconds ago, where the others have `mean_in_flight`
/// each. `None`: its start is over, after `window_s` seconds.
///
/// At least 1, never falling with time, and at the end what the others have and one more.
pub fn cap(since_s: f64, window_s: f64, mean_in_flight: f64) -> Option<u32> {
    let share = since_s.max(0.0) / window_s;
    // Not for a window of zero, or one that is no number.
    if !(0.0..1.0).contains(&share) {
        return None;
    }
    // The cast saturates.
    Some((share * (mean_in_flight.max(0.0) + 1.0)).ceil().max(1.0) as u32)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_share_grows_with_time() {
        let at = |since_s| cap(since_s, 10.0, 19.0);
        assert_eq!([at(0.0), at(1.0), at(5.0), at(9.99)], [Some(1), Some(2), Some(10), Some(20)]);
        assert_eq!([at(10.0), at(1e9)], [None, None]);
        assert_eq!([cap(0.0, 0.0, 19.0), cap(0.0, f64::NAN, 19.0)], [None, None]);
    }

    proptest! {
        #[test]
        fn never_nothing_and_never_falling(window in 0.1f64..1e4, mean in 0.0f64..1e4, a in 0.0f64..1.0, b in 0.0f64..1.0) {
            let (early, late) = (a.min(b) * window, a.max(b) * window);
            let early = cap(early, window, mean).map_or(u32::MAX, |n| n);
            let late = cap(late, window, mean).map_or(u32::MAX, |n| n);
            prop_assert!(early >= 1);
            prop_assert!(late >= early);
        }
    }
}
