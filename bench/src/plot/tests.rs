use super::*;
use crate::report::tests::example;

#[test]
fn pictures_are_drawn_in_the_format_of_their_name() {
    let file = |ending: &str| {
        std::env::temp_dir().join(format!("larder-bench-plot-{}.{ending}", std::process::id()))
    };
    for (ending, magic) in [("svg", b"<svg".as_slice()), ("png", b"\x89PNG".as_slice())] {
        let path = file(ending);
        draw(&path, &example()).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(bytes.starts_with(magic), "{ending}");
    }
    let error = kind(Path::new("plot.gif")).unwrap_err();
    assert_eq!(error.exit_code(), 64);
}
