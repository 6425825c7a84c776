use super::*;

fn at(seconds: f64) -> Now {
    Now::from_secs_f64(seconds)
}

#[test]
fn prefills_queue_up_and_pass_with_time() {
    let mut load = Load::default();
    assert_eq!(load.join(true, at(10.0)), 0);
    load.begin(0, 1_000, 2.0, (true, at(10.0)), at(10.0));
    assert_eq!(load.join(true, at(10.0)), 1);
    load.begin(1, 500, 1.0, (true, at(10.0)), at(10.0));
    assert_eq!(load.wait_s(0.0, at(10.0)), 3.0);
    assert_eq!(load.wait_s(0.0, at(12.5)), 0.5);
    assert_eq!((load.uncached_tokens(), load.in_flight(), load.decoding()), (1_500, 2, 0));
}

#[test]
fn first_tokens_correct_the_end() {
    let mut load = Load::default();
    load.begin(0, 1_000, 2.0, (true, at(0.0)), at(0.0));
    load.begin(1, 500, 1.0, (true, at(0.0)), at(0.0));
    // Twice as fast as believed: the second begins now.
    assert_eq!(load.first_token(0, at(0.0), at(1.0)), Some(1.0));
    assert_eq!(load.wait_s(0.0, at(1.0)), 1.0);
    // Its prefill began with the first one's end, not with its own arrival.
    assert_eq!(load.first_token(1, at(0.0), at(3.0)), Some(2.0));
    assert_eq!((load.wait_s(0.0, at(3.0)), load.decoding()), (0.0, 2));
}

#[test]
fn a_late_endpoint_is_expected_to_stay_late() {
    let mut load = Load::default();
    load.begin(0, 1_000, 2.0, (true, at(0.0)), at(0.0));
    assert_eq!(load.wait_s(0.0, at(2.0)), 0.0);
    assert_eq!(load.wait_s(0.0, at(3.0)), 1.0);
    assert_eq!(load.wait_s(0.0, at(300.0)), 2.0, "never more than all that is owed");
    // A hung endpoint that is given more looks ever worse.
    load.begin(1, 1_000, 2.0, (true, at(300.0)), at(300.0));
    assert_eq!(load.wait_s(0.0, at(400.0)), 4.0);
}

#[test]
fn unstreamed_answers_count_as_prefilled_when_they_should_be() {
    let mut load = Load::default();
    load.begin(0, 1_000, 2.0, (false, at(0.0)), at(0.0));
    assert_eq!(load.wait_s(0.0, at(1.0)), 1.0);
    assert_eq!(load.wait_s(0.0, at(50.0)), 0.0, "nothing to be late with: its first token is never seen");
    assert_eq!(load.join(true, at(50.0)), 0, "and it holds no busy period open");
    load.begin(1, 100, 0.5, (true, at(50.0)), at(50.0));
    assert_eq!(load.uncached_tokens(), 100);
    assert_eq!(load.join(false, at(50.0)), 1);
    load.end(0, at(60.0));
    load.end(1, at(60.0));
    assert_eq!(load.join(false, at(60.0)), 2, "those who wait for it keep it open");
}

#[test]
fn an_unseen_prefill_ahead_teaches_nothing() {
    let mut load = Load::default();
    load.begin(0, 1_000, 2.0, (false, at(0.0)), at(0.0));
    load.begin(1, 1_000, 2.0, (true, at(0.0)), at(0.0));
    load.begin(2, 1_000, 2.0, (false, at(0.0)), at(0.0));
    assert_eq!(load.first_token(1, at(0.0), at(3.0)), None);
    assert_eq!(load.uncached_tokens(), 1_000, "what was ahead of it is done, what is behind it is not");
}

#[test]
fn odd_orders_end_at_nothing() {
    let mut load = Load::default();
    load.begin(0, 1_000, 2.0, (true, at(5.0)), at(5.0));
    load.begin(1, 1_000, 2.0, (true, at(4.0)), at(4.0));
    load.end(1, at(3.0));
    load.end(1, at(3.0));
    assert_eq!(load.first_token(1, at(4.0), at(6.0)), None, "ended");
    load.end(0, at(0.0));
    assert_eq!((load.in_flight(), load.uncached_tokens(), load.wait_s(0.0, at(0.0))), (0, 0, 0.0));
}
