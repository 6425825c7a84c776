//! Does the house keep its own rules? What no lint can hold is held here: each rule is a function from the tree to
//! complaints, and is also shown a made-up offence, which it must report.

mod crates;
pub(crate) mod docs;
mod rust;
mod text;
mod tree;

use crates::Package;
use tree::File;

#[track_caller]
fn assert_none(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

/// The rule must complain about `offence` exactly once, and name `expected`.
#[track_caller]
fn assert_one(complaints: &[String], expected: &str) {
    assert!(
        complaints.len() == 1 && complaints[0].contains(expected),
        "{complaints:?} should be one about {expected}"
    );
}

fn file(path: &str, text: impl Into<String>) -> File {
    File { path: path.to_owned(), text: text.into() }
}

#[test]
fn packages_depend_downwards_and_pure_ones_on_nothing_impure() {
    let packages = crates::packages();
    assert!(packages.len() >= 8, "{packages:?}");
    assert_none(&crates::forbidden_edges(&packages));

    let offence = |dir: &str, name: &str, dependency: &str| {
        let package = Package {
            dir: dir.into(),
            name: name.into(),
            dependencies: vec![(dependency.into(), None)],
            roots: vec![],
        };
        crates::forbidden_edges(&[package])
    };
    for impure in
        ["tokio", "hyper", "hyper-util", "pingora", "pingora-core", "redis", "cudarc", "rand", "rand_core"]
    {
        assert!(!offence("proxy/routing", "larder-routing", impure).is_empty(), "{impure}");
    }
    assert_one(&offence("cache-node/tiering", "larder-tiering", "tokio"), "larder-tiering");
    assert_one(&offence("proxy", "larder-proxy", "larder-cache-node"), "larder-cache-node");
    assert_one(&offence("proxy", "larder-proxy", "larder-tests"), "larder-tests");
    assert_one(&offence("cache-node/client", "larder-client", "larder-routing"), "larder-routing");
    assert_one(&offence("kernels", "larder-kernels", "larder-identity"), "larder-identity");
    assert_one(&offence("tests/sim", "larder-sim", "larder-bench"), "larder-bench");
    assert_one(&offence("cache-node", "larder-cache-node", "cudarc"), "cudarc");
    assert_none(&offence("kernels", "larder-kernels", "cudarc"));
    assert_none(&offence("bench", "larder-bench", "larder-proxy"));
    // For its own tests a pure package may use what it likes.
    let dev = Package {
        dir: "proxy/routing".into(),
        name: "larder-routing".into(),
        dependencies: vec![("rand".into(), Some("dev".into()))],
        roots: vec![],
    };
    assert_none(&crates::forbidden_edges(&[dev]));
}

#[test]
fn every_package_has_the_workspaces_lints() {
    assert_none(&crates::without_lints(&tree::files(&["Cargo.toml"])));
    assert_one(&crates::without_lints(&[file("x/Cargo.toml", "[package]\nname = \"x\"\n")]), "x/Cargo.toml");
    let own =
        "[package]\nname = \"x\"\n[lints.rust]\nunsafe_code = \"allow\"\n[dependencies]\nworkspace = true\n";
    assert_one(&crates::without_lints(&[file("x/Cargo.toml", own)]), "x/Cargo.toml");
    let alone =
        |lint| format!("[workspace]\n[package]\nname = \"x\"\n[lints.rust]\nunsafe_code = \"{lint}\"\n");
    assert_none(&crates::without_lints(&[file("x/Cargo.toml", alone("forbid"))]));
    assert_one(&crates::without_lints(&[file("x/Cargo.toml", alone("allow"))]), "x/Cargo.toml");
}

#[test]
fn every_crate_says_what_it_is() {
    assert_none(&crates::undocumented_roots(&crates::packages(), tree::read));
    let package = Package {
        dir: "x".into(),
        name: "x".into(),
        dependencies: vec![],
        roots: vec!["x/src/lib.rs".into()],
    };
    let complaints = crates::undocumented_roots(&[package], |_| "// no doc\nfn main() {}\n".into());
    assert_one(&complaints, "x/src/lib.rs");
}

#[test]
fn no_file_is_too_long() {
    assert_none(&text::too_long(&tree::files(&[".rs", ".py", ".cu"])));
    assert_one(&text::too_long(&[file("a.rs", "x\n".repeat(801)), file("b.rs", "x\n".repeat(800))]), "a.rs");
}

#[test]
fn nothing_is_left_undone() {
    let files = tree::files(&[".rs", ".py", ".cu", ".toml", ".md"]);
    assert_none(&text::unfinished(&files));
    for undone in ["fn f() { todo!() }", "fn f() { unimplemented !() }", "dbg!(x);"] {
        assert_one(&text::unfinished(&[file("a.rs", undone)]), "a.rs:1");
    }
    assert_one(&text::unfinished(&[file("a.py", format!("\n# {}: later", text::FIX_ME))]), "a.py:2");
    assert_none(&text::unfinished(&[file(
        "a.rs",
        "// not a todo!() in code\nlet s = \"dbg!(x)\"; my_dbg!(x);",
    )]));
}

#[test]
fn nothing_depends_on_one_machine() {
    assert_none(&text::machine_paths(&tree::files(&[])));
    for place in text::MACHINE_PLACES {
        assert_one(&text::machine_paths(&[file("a.md", format!("see \"{place}x\""))]), "a.md:1");
        assert_none(&text::machine_paths(&[file("a.md", format!("bench{place}x"))]));
    }
}

#[test]
fn raw_memory_is_touched_only_in_listed_files() {
    let sources = tree::files(&[".rs"]);
    assert_none(&rust::unlisted_unsafe(&sources, rust::UNSAFE_FILES));
    let offence = file(
        "a.rs",
        "#![deny(unsafe_code)]\n// unsafe is a word\nlet s = \"unsafe\";\nlet x = unsafe { y };\n",
    );
    assert_one(&rust::unlisted_unsafe(&[offence], &[]), "a.rs:4");
    assert_one(&rust::unlisted_unsafe(&[file("b.rs", "")], &[("b.rs", "no reason any more")]), "b.rs");
}

#[test]
fn the_reader_of_rust_knows_code_from_what_is_not() {
    let source = r##"a /* b /* c */ d */ e // f
        "g \" h" i r#"j " k"# 'l' '\'' 'life m b"n" b'o' br"p" q: &'r str"##;
    let words: Vec<String> = rust::code(source).split_whitespace().map(str::to_owned).collect();
    assert_eq!(words.join(" "), "a e \"\" i r#\"\"# '' '' 'life m b\"\" b'' br\"\" q: &'r str");
    assert_eq!(rust::strings(source), ["g \\\" h", "j \" k", "n", "p"]);
    assert_eq!(rust::code("a\n\"b\nc\"\nd").lines().count(), 4, "lines keep their numbers");
}

#[test]
fn every_metric_is_documented_and_every_documented_one_exists() {
    let sources = tree::files(&[".rs"]);
    let pages: Vec<File> =
        tree::files(&[".md"]).into_iter().filter(|f| f.path.starts_with("docs/")).collect();
    assert!(docs::exported_metrics(&sources).len() > 10);
    assert_none(&docs::undocumented_metrics(&sources, &pages));

    let source = [file(
        "a/src/metrics.rs",
        "counter(\"larder_a_total\", \"Help with larder_words\"); // \"larder_not\"",
    )];
    let page =
        |name: &str| [file("docs/metrics.md", format!("| metric |\n| --- |\n| `{name}` | `larder_x` |\n"))];
    assert_none(&docs::undocumented_metrics(&source, &page("larder_a_total")));
    let complaints = docs::undocumented_metrics(&source, &page("larder_b_total"));
    assert_eq!(complaints.len(), 2, "{complaints:?}");
    assert!(
        complaints[0].contains("larder_a_total") && complaints[1].contains("larder_b_total"),
        "{complaints:?}"
    );
}
