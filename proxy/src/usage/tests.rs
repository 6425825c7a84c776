use super::*;

fn scan(parts: &[&str]) -> Option<Usage> {
    let mut scanner = UsageScanner::default();
    for part in parts {
        scanner.feed(part.as_bytes());
    }
    scanner.finish()
}

const UNSTREAMED: &str = r#"{"id":"x","choices":[{"message":{"content":"say \"usage\":{\"prompt_tokens\":1}"}}],
    "usage": {"prompt_tokens":30,"total_tokens":32,"completion_tokens":2,
              "prompt_tokens_details":{"cached_tokens":16}},"kv_transfer_params":null}"#;

#[test]
fn unstreamed() {
    assert_eq!(scan(&[UNSTREAMED]), Some(Usage { prompt_tokens: 30, cached_tokens: Some(16) }));
}

#[test]
fn any_split_gives_the_same() {
    for cut in 0..UNSTREAMED.len() {
        let (a, b) = UNSTREAMED.split_at(cut);
        assert_eq!(scan(&[a, b]), scan(&[UNSTREAMED]), "cut at {cut}");
    }
}

#[test]
fn streamed_with_nulls_before() {
    let events = "data: {\"choices\":[],\"usage\":null}\n\ndata: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\
                  \"prompt_tokens_details\":null}}\n\ndata: [DONE]\n\n";
    assert_eq!(scan(&[events]), Some(Usage { prompt_tokens: 7, cached_tokens: None }));
}

#[test]
fn generated_text_cannot_imitate_it() {
    assert_eq!(scan(&[r#"{"choices":[{"text":"\"usage\":{\"prompt_tokens\":9}"}]}"#]), None);
    // Negative control: unescaped, the same bytes are found.
    assert_eq!(scan(&[r#""usage":{"prompt_tokens":9}"#]).map(|u| u.prompt_tokens), Some(9));
}

#[test]
fn a_long_answer_keeps_only_its_tail() {
    let mut scanner = UsageScanner::default();
    for _ in 0..10_000 {
        scanner.feed(b"data: {\"choices\":[{\"delta\":{\"content\":\"word\"}}]}\n\n");
        assert!(scanner.tail.len() <= 2 * TAIL_BYTES);
    }
    scanner.feed(&vec![b'x'; 10 << 20]);
    assert!(scanner.tail.len() <= 2 * TAIL_BYTES);
    scanner.feed(UNSTREAMED.as_bytes());
    assert_eq!(scanner.finish().map(|u| u.prompt_tokens), Some(30));
}

#[test]
fn garbage_is_no_usage() {
    for garbage in
        ["", "\"usage\":", "\"usage\":{", "\"usage\":{}", "\"usage\":[1]", "\"usage\":{\"prompt_tokens\":-1}"]
    {
        assert_eq!(scan(&[garbage]), None, "{garbage}");
    }
}

#[test]
fn messages_count_what_is_cached_beside_the_rest() {
    let start = "event: message_start\ndata: {\"message\":{\"usage\":{\"input_tokens\":30,\"cache_read_input_tokens\":64,\"cache_creation_input_tokens\":6,\"output_tokens\":1}}}\n\n";
    let delta = "event: message_delta\ndata: {\"delta\":{},\"usage\":{\"output_tokens\":9}}\n\n";
    let expected = Usage { prompt_tokens: 100, cached_tokens: Some(64) };
    assert_eq!(scan(&[start, delta]), Some(expected));
    let whole = r#"{"type":"message","usage":{"input_tokens":30,"output_tokens":9}}"#;
    assert_eq!(scan(&[whole]), Some(Usage { prompt_tokens: 30, cached_tokens: None }));
}

#[test]
fn responses_have_details_of_their_input() {
    let end = r#"data: {"type":"response.completed","response":{"usage":{"input_tokens":100,"input_tokens_details":{"cached_tokens":64},"output_tokens":5}}}"#;
    assert_eq!(scan(&[end]), Some(Usage { prompt_tokens: 100, cached_tokens: Some(64) }));
}

#[test]
fn a_usage_without_a_prompt_is_none() {
    assert_eq!(scan(&[r#"{"usage":{"output_tokens":5}}"#]), None);
    assert_eq!(scan(&[r#"{"usage":{"input_tokens":-5}}"#]), None);
    let huge = r#"{"usage":{"input_tokens":18446744073709551615,"cache_read_input_tokens":5}}"#;
    assert_eq!(scan(&[huge]), Some(Usage { prompt_tokens: u64::MAX, cached_tokens: Some(5) }));
}
