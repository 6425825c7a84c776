use super::*;

#[test]
fn lines_and_columns_count_from_one() {
    let text = "a = 1\nßb = 2\n\nc";
    let lines = Lines::of(text);
    let at = |what: char| {
        let start = text.find(what).expect("is in the text");
        (lines.line(&(start..start)), lines.column(text, &(start..start)))
    };
    assert_eq!(at('a'), (1, 1));
    assert_eq!(at('b'), (2, 2), "ß is one character of two bytes");
    assert_eq!(at('c'), (4, 1));
    assert_eq!(lines.line(&(0..0)), 1);
    // An offset past the end (an "unexpected end of file") is on the last line.
    assert_eq!(lines.line(&(1000..1000)), 4);
    assert_eq!(lines.column(text, &(1000..1000)), 1);
}

#[test]
fn files_that_cannot_be_read_say_which_and_why() {
    let folder = std::env::temp_dir().join(format!("larder-settings-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("x.toml");

    let missing = read_text(&path).unwrap_err().to_string();
    assert!(missing.contains("x.toml: cannot be opened: "), "{missing}");

    std::fs::write(&path, b"a = \xff").unwrap();
    assert!(
        read_text(&path).unwrap_err().to_string().ends_with("not UTF-8 text at byte 4, so not a TOML file")
    );

    std::fs::write(&path, vec![b'#'; MAX_FILE_BYTES as usize]).unwrap();
    assert_eq!(read_text(&path).map(|text| text.len() as u64), Ok(MAX_FILE_BYTES));
    std::fs::write(&path, vec![b'#'; MAX_FILE_BYTES as usize + 1]).unwrap();
    assert!(read_text(&path).unwrap_err().to_string().contains("larger than"));

    let folder_as_file = read_text(&folder).unwrap_err().to_string();
    assert!(folder_as_file.contains("cannot be"), "{folder_as_file}");
    std::fs::remove_dir_all(&folder).unwrap();
}
