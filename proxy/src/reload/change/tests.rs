use super::*;
use crate::config;

fn config(top: &str, pools: &str) -> Config {
    config::parse(&format!("{top}\n{pools}")).unwrap()
}

fn pool(model: &str, endpoints: &[&str]) -> String {
    let endpoints: Vec<String> = endpoints.iter().map(|keys| format!("{{ {keys} }}")).collect();
    format!("[[pool]]\nmodel = \"{model}\"\nendpoint = [{}]\n", endpoints.join(", "))
}

#[test]
fn endpoints_change_by_name_address_and_node() {
    let old = config(
        "",
        &pool(
            "m",
            &[
                "url = \"http://a:1\"",
                "url = \"http://b:1\", name = \"b\"",
                "url = \"http://c:1\", name = \"c\"",
                "url = \"http://d:1\", name = \"d\"",
            ],
        ),
    );
    let new = config(
        "",
        &pool(
            "m",
            &[
                "url = \"http://a:1\", kv_tokens = 9, max_in_flight = 3",
                "url = \"http://b:2\", name = \"b\"",
                "url = \"http://c:1\", name = \"c\", cache_node = \"http://c:2\"",
                "url = \"http://e:1\"",
            ],
        ),
    );
    let changes = pools(&old, &new);
    assert_eq!(changes.len(), 1);
    let names: Vec<&str> = changes[0].new.iter().map(|e| e.name.as_str()).collect();
    assert_eq!(
        (changes[0].gone.as_slice(), names.as_slice()),
        (&["b", "c", "d"][..], &["b", "c", "e:1"][..])
    );
    assert_eq!(pools(&old, &old), []);
}

#[test]
fn what_needs_a_restart_is_named_and_stays() {
    let a = ["url = \"http://a:1\""];
    let old = config("listen = \"0.0.0.0:1\"", &format!("{}{}", pool("m", &a), pool("n", &a)));
    let top = "listen = \"0.0.0.0:2\"\nthreads = 3\naccess_log = true\n[routing]\nrun_bytes = 64\nhold_limit = \"1s\"\n\
               [warehouse]\nmin_tokens = 1";
    let m = pool("m", &["url = \"http://b:1\""]).replace("endpoint", "aliases = [\"x\"]\nendpoint");
    let new = config(top, &format!("{m}{}", pool("o", &a)));
    let (in_force, restart) = in_force(&old, new.clone());
    assert_eq!(
        restart,
        [
            "listen",
            "threads",
            "routing.run_bytes",
            "warehouse",
            "pool `m`: aliases",
            "pool `n`: is in the file no more",
            "pool `o`: is new"
        ]
    );
    let mut expected = old.clone();
    expected.access_log = true;
    expected.routing.hold_limit = new.routing.hold_limit;
    expected.pools[0].endpoints = new.pools[0].endpoints.clone();
    assert_eq!(in_force, expected);
    // What waits for a restart is named again the next time.
    assert_eq!(super::in_force(&in_force, new).1, restart);
    assert_eq!(super::in_force(&old, old.clone()), (old, vec![]));
}

#[test]
fn an_admin_listener_that_others_reach_keeps_its_token() {
    let pools = pool("m", &["url = \"http://a:1\""]);
    let old = config("admin = \"0.0.0.0:9\"\n[access]\nadmin_token_file = \"a\"", &pools);
    let (kept, restart) = in_force(&old, config("admin = \"127.0.0.1:9\"", &pools));
    assert_eq!(restart, ["admin", "access.admin_token_file"]);
    assert_eq!(kept.access.admin_token_file, old.access.admin_token_file);
    let (other, restart) =
        in_force(&old, config("admin = \"0.0.0.0:9\"\n[access]\nadmin_token_file = \"b\"", &pools));
    assert_eq!((other.access.admin_token_file.unwrap().to_str(), restart.len()), (Some("b"), 0));
}
