use super::*;

const ANSWER: &str = "data: {\"id\":\"x\",\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}],\"usage\":null}\n\n\
    data: {\"id\":\"x\",\"choices\":[{\"delta\":{\"content\":\"say \\\"error\\\" and \\\"prompt_tokens\\\"\"}}]}\r\n\r\n\
    : a comment\n\
    data: {\"choices\":[],\"usage\":{\"prompt_tokens\":321,\"completion_tokens\":2,\"prompt_tokens_details\":{\"cached_tokens\":256}}}\n\n\
    data: [DONE]\n\n";

#[test]
fn usage_and_end_are_found_however_the_bytes_are_cut() {
    for size in [1, 7, 64, ANSWER.len()] {
        let mut scanner = Scanner::default();
        for piece in ANSWER.as_bytes().chunks(size) {
            scanner.feed(piece).unwrap();
        }
        assert!(scanner.has_content());
        assert_eq!(scanner.finish().unwrap(), Usage { prompt_tokens: 321, cached_tokens: 256 });
    }
}

#[test]
fn the_opening_chunk_with_empty_content_is_not_the_first_token() {
    let mut scanner = Scanner::default();
    let first = ANSWER.find("\n\n").unwrap() + 2;
    scanner.feed(&ANSWER.as_bytes()[..first]).unwrap();
    assert!(!scanner.has_content());
    scanner.feed(&ANSWER.as_bytes()[first..]).unwrap();
    assert!(scanner.has_content());
}

#[test]
fn incomplete_answers_and_error_events_say_what_is_wrong() {
    let end = |text: &str| {
        let mut scanner = Scanner::default();
        scanner.feed(text.as_bytes()).and_then(|()| scanner.finish().map(|_| ()))
    };
    assert!(end("data: {}\n\n").unwrap_err().contains("before [DONE]"));
    assert!(end("data: [DONE]\n").unwrap_err().contains("no usage"));
    let error = end("data: {\"error\":{\"message\":\"kaputt\"}}\n\ndata: [DONE]\n").unwrap_err();
    assert!(error.contains("kaputt"), "{error}");
    let mut scanner = Scanner::default();
    let long = vec![b'x'; LINE_BYTES_MAX + 1];
    assert!(scanner.feed(&long).unwrap_err().contains("longer than"));
}
