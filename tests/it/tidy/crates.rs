//! Rules about packages: who may depend on whom, and what each must have.

use std::process::Command;

use larder_tests::program::workspace;
use serde_json::Value;

use super::tree::File;

/// A package of the workspace.
#[derive(Clone, Debug)]
pub(super) struct Package {
    /// Its folder, from the root of the workspace.
    pub(super) dir: String,
    pub(super) name: String,
    /// What it depends on, and the kind: none for the program itself, `dev` or `build`.
    pub(super) dependencies: Vec<(String, Option<String>)>,
    /// The root files of its crates.
    pub(super) roots: Vec<String>,
}

/// Packages that are state machines and arithmetic only, so that they run alike live, simulated and under test.
const PURE: [&str; 5] =
    ["larder-identity", "larder-protocol", "larder-routing", "larder-settings", "larder-tiering"];

/// What has a clock, chance or I/O in it; also by prefix, as in `hyper-util`.
const IMPURE: [&str; 6] = ["tokio", "hyper", "pingora", "redis", "cudarc", "rand"];

/// Folders at the root from the top of the house down: a package depends on its own folder and those after it.
const ORDER: [&str; 5] = ["bench", "tests", "proxy", "cache-node", "kernels"];

/// Where our own packages are, for edges to ones that a test makes up.
const HOMES: [(&str, &str); 13] = [
    ("larder-bench", "bench"),
    ("larder-tests", "tests"),
    ("larder-mock-engine", "tests"),
    ("larder-proxy", "proxy"),
    ("larder-routing", "proxy"),
    ("larder-cache-node", "cache-node"),
    ("larder-client", "cache-node"),
    ("larder-identity", "cache-node"),
    ("larder-protocol", "cache-node"),
    ("larder-settings", "cache-node"),
    ("larder-tiering", "cache-node"),
    ("larder-kernels", "kernels"),
    ("larder-emulator", "kernels"),
];

/// All packages, as cargo sees them.
pub(super) fn packages() -> Vec<Package> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .current_dir(workspace())
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .output()
        .expect("cargo can be started");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON from cargo metadata");
    let packages = metadata["packages"].as_array().expect("a list of packages");
    packages.iter().map(package).collect()
}

fn package(value: &Value) -> Package {
    let text = |value: &Value| value.as_str().expect("a string").to_owned();
    let root = workspace().to_str().expect("a workspace with a plain name");
    let inside = |path: &Value| {
        text(path).strip_prefix(root).expect("a path in the workspace").trim_start_matches('/').to_owned()
    };
    let list = |key: &str| value[key].as_array().expect("a list").iter();
    Package {
        dir: inside(&value["manifest_path"]).trim_end_matches("/Cargo.toml").to_owned(),
        name: text(&value["name"]),
        dependencies: list("dependencies")
            .map(|d| (text(&d["name"]), d["kind"].as_str().map(str::to_owned)))
            .collect(),
        roots: list("targets").map(|target| inside(&target["src_path"])).collect(),
    }
}

/// Where a package of ours is, as a place in [`ORDER`].
fn rank(packages: &[Package], name: &str) -> Option<usize> {
    let listed = packages.iter().find(|p| p.name == name).map(|p| p.dir.as_str());
    let home = listed.or_else(|| HOMES.iter().find(|(known, _)| *known == name).map(|(_, home)| *home))?;
    ORDER.iter().position(|folder| home.split('/').next() == Some(folder))
}

fn is_impure(name: &str) -> bool {
    let same = |banned: &str| {
        name.strip_prefix(banned).is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '_']))
    };
    IMPURE.into_iter().any(same)
}

/// Dependencies that the house does not allow, of any kind unless said otherwise.
pub(super) fn forbidden_edges(packages: &[Package]) -> Vec<String> {
    let mut complaints = Vec::new();
    for package in packages {
        let Package { name, dir, .. } = package;
        let Some(own) =
            rank(packages, name).or_else(|| ORDER.iter().position(|f| dir.split('/').next() == Some(f)))
        else {
            complaints.push(format!("{name} is in {dir}, a folder without a place in the order {ORDER:?}"));
            continue;
        };
        for (on, kind) in &package.dependencies {
            let edge = format!("{name} depends on {on}");
            if rank(packages, on).is_some_and(|other| other < own) {
                complaints.push(format!("{edge}, which is above it in the order {ORDER:?}"));
            } else if name == "larder-proxy" && on == "larder-cache-node" {
                complaints.push(format!(
                    "{edge}: the proxy knows the node's contract (identity, protocol, client), never the node"
                ));
            } else if on == "cudarc" && ORDER[own] != "kernels" {
                complaints.push(format!("{edge}: only kernels/ names it"));
            } else if PURE.contains(&name.as_str()) && is_impure(on) && kind.as_deref() != Some("dev") {
                complaints.push(format!("{edge}: it is pure, time and chance are its arguments"));
            }
        }
    }
    complaints
}

/// Manifests of packages without `[lints] workspace = true`.
pub(super) fn without_lints(manifests: &[File]) -> Vec<String> {
    let lacks = |file: &&File| {
        let mut lines = file.text.lines().map(str::trim).skip_while(|line| *line != "[lints]").skip(1);
        let lints = lines.by_ref().take_while(|line| !line.starts_with('['));
        // A package that is a workspace of its own cannot take this one's, and must forbid what they are for.
        let alone = file.text.contains("[workspace]\n")
            && file.text.contains("[lints.rust]\nunsafe_code = \"forbid\"");
        file.text.contains("[package]") && !alone && !lints.into_iter().any(|line| line == "workspace = true")
    };
    manifests
        .iter()
        .filter(lacks)
        .map(|file| format!("{} lacks [lints] workspace = true", file.path))
        .collect()
}

/// Crates whose root does not begin with `//!`.
pub(super) fn undocumented_roots(packages: &[Package], read: impl Fn(&str) -> String) -> Vec<String> {
    let roots = packages.iter().flat_map(|package| &package.roots);
    roots
        .filter(|root| !read(root).starts_with("//!"))
        .map(|root| format!("{root} does not begin with //!"))
        .collect()
}
