use super::*;

fn parse(json: &str) -> Result<Fault, String> {
    let fault: Fault = serde_json::from_str(json).map_err(|error| error.to_string())?;
    fault.check().map(|()| fault)
}

#[test]
fn strikes_after_and_for_as_long_as_ordered() {
    let mut faults = Faults::default();
    faults.set(parse(r#"{"kind":"status","after":2,"count":3}"#).unwrap());
    let hits: Vec<bool> = (0..7).map(|_| faults.strike(true).is_some()).collect();
    assert_eq!(hits, [false, false, true, true, true, false, false]);
    faults.set(parse(r#"{"kind":"hang"}"#).unwrap());
    assert!((0..100).all(|_| faults.strike(true).is_some()), "no count: for ever");
    faults.set(parse(r#"{"kind":"none"}"#).unwrap());
    assert!(faults.strike(true).is_none());
}

#[test]
fn health_and_metrics_are_spared_unless_ordered() {
    let mut faults = Faults::default();
    faults.set(parse(r#"{"kind":"status","count":1}"#).unwrap());
    assert!(faults.strike(false).is_none());
    assert!(faults.strike(true).is_some(), "the probe before did not use the count up");
    faults.set(parse(r#"{"kind":"status","all_paths":true}"#).unwrap());
    assert!(faults.strike(false).is_some());
}

#[test]
fn orders_that_make_no_sense_are_refused() {
    for json in [
        r#"{"kind":"explode"}"#,
        r#"{"kind":"slow","delay":1}"#,
        r#"{"kind":"slow","delay_s":-1}"#,
        r#"{"kind":"slow","delay_s":1e9}"#,
        r#"{"kind":"status","status":200}"#,
        r#"{}"#,
    ] {
        assert!(parse(json).is_err(), "{json}");
    }
}

#[test]
fn only_faults_in_the_middle_wait_for_chunks() {
    let before = |json| parse(json).unwrap().chunks_before();
    assert_eq!(before(r#"{"kind":"reset_mid_stream"}"#), Some(3));
    assert_eq!(before(r#"{"kind":"reset_mid_stream","chunks":0}"#), None);
    assert_eq!(before(r#"{"kind":"hang"}"#), None);
    assert_eq!(before(r#"{"kind":"die","chunks":2}"#), Some(2));
    assert_eq!(before(r#"{"kind":"slow","chunks":2}"#), None);
}
