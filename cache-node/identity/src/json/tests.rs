use super::*;
use crate::Simd;

fn cursor(body: &str) -> Cursor<'_> {
    Cursor::new(body.as_bytes(), Cpu::select(Simd::Detect))
}

fn spelled(body: &str) -> Result<String, NoChain> {
    let mut cursor = cursor(body);
    let text = cursor.string()?;
    let mut out = Vec::new();
    text.put(cursor.cpu, cursor.body, &mut out)?;
    Ok(String::from_utf8(out).unwrap())
}

fn compact(body: &str) -> Result<String, NoChain> {
    let span = Span { start: 0, end: body.len() };
    let mut out = Vec::new();
    canonical(cursor(body), span, &mut out)?;
    Ok(String::from_utf8(out).unwrap())
}

#[test]
fn escapes_have_one_spelling() {
    let cases = [
        (r#""plain \n \" \\ kept""#, r#"plain \n \" \\ kept"#),
        (r#""\u0041\u00e9\u20AC\ud83d\uDE00\/""#, "Aé€😀/"),
        (r#""\u0008\u0009\u000a\u000C\u000d\u0022\u005C""#, r#"\b\t\n\f\r\"\\"#),
        (r#""\u0000\u001F\u007f""#, "\\u0000\\u001f\u{7f}"),
        (r#""\\u0041\\\u0041\\\\/""#, r#"\\u0041\\A\\\\/"#),
        (r#""""#, ""),
    ];
    for (body, want) in cases {
        assert_eq!(spelled(body).as_deref(), Ok(want), "{body}");
    }
}

#[test]
fn lone_surrogates_are_kept_apart() {
    let put = |body: &str| {
        let mut cursor = cursor(body);
        let mut out = Vec::new();
        cursor.string().unwrap().put(cursor.cpu, cursor.body, &mut out).unwrap();
        out
    };
    assert_eq!(put(r#""\ud800""#), b"\xED\xA0\x80");
    assert_eq!(put(r#""\ud800\ud800\udc00""#), [b"\xED\xA0\x80".as_slice(), "𐀀".as_bytes()].concat());
    assert_eq!(put(r#""\udc00x""#), b"\xED\xB0\x80x");
}

#[test]
fn broken_strings_have_no_form() {
    for body in
        [r#""\u00g0""#, r#""\u12""#, r#""\ud83d\u12""#, "\"a\nb\"", "\"open", "\"open\\\"", "\"a\u{1f}\""]
    {
        assert!(spelled(body).is_err(), "{body}");
    }
    for byte in 0xF5..=0xFF_u8 {
        let body = [b'"', byte, b'"'];
        assert!(Cursor::new(&body, Cpu::Portable).string().is_err(), "a marker in text: {byte:x}");
    }
}

#[test]
fn values_of_strings() {
    let value =
        |body: &str| cursor(body).string().unwrap().value(body.as_bytes()).map(std::borrow::Cow::into_owned);
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(value(r#""plain""#), text("plain"));
    assert_eq!(value(r#""\u0041\n\\n\"\/\ud83d\ude00""#), text("A\n\\n\"/😀"));
    assert_eq!(value(r#""\ud800""#), text("\u{FFFD}"));
    assert_eq!(value(r#""\x""#), None);
    assert_eq!(value(r#""\u00""#), None);
}

#[test]
fn free_json_loses_white_space_and_nothing_else() {
    let cases = [
        (r#"{ "b" : [ 1 , 2.50e+1, -0 ] ,"a":{ } , "a" : [ ] }"#, r#"{"b":[1,2.50e+1,-0],"a":{},"a":[]}"#),
        (r#"[true,false,null,"\u0061 \n"]"#, r#"[true,false,null,"a \n"]"#),
        ("{\"\\u006b\"\n:\t\"v\"}", r#"{"k":"v"}"#),
        ("1", "1"),
        (r#""x""#, r#""x""#),
    ];
    for (body, want) in cases {
        assert_eq!(compact(body).as_deref(), Ok(want), "{body}");
    }
}

#[test]
fn free_json_is_validated() {
    let broken = [
        "[1,]",
        "[,1]",
        "[1 2]",
        "{\"a\"}",
        "{\"a\":}",
        "{\"a\":1,}",
        "{1:2}",
        "{,}",
        "[1}",
        "{\"a\":1]",
        "[",
        "",
        "01",
        "1.",
        "1e",
        "-",
        "+1",
        ".5",
        "tru",
        "nul",
        "[1]]",
        "[1] 2",
        "\"a",
        "{\"a\" 1}",
        "NaN",
    ];
    for body in broken {
        assert!(matches!(compact(body), Err(NoChain::NotJson { .. })), "{body}");
    }
}

#[test]
fn free_json_has_a_greatest_depth() {
    let nested = |depth: usize| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
    assert_eq!(compact(&nested(128)).as_deref(), Ok(nested(128).as_str()));
    assert_eq!(compact(&nested(129)), Err(NoChain::TooDeep { at: 128, limit: 128 }));
}

#[test]
fn a_compact_value_is_written_in_one_piece() {
    struct Pieces(usize);
    impl crate::Out for Pieces {
        fn put(&mut self, _bytes: &[u8]) {
            self.0 += 1;
        }
    }
    let body = r#"[{"type":"function","x":[1,2,{"d":"a \"b\" \n"}]},null]"#;
    let mut pieces = Pieces(0);
    canonical(cursor(body), Span { start: 0, end: body.len() }, &mut pieces).unwrap();
    assert_eq!(pieces.0, 1);
}
