//! Does the shadow decide without being followed?

use larder_tests::client;
use larder_tests::program::Program;
use larder_tests::world::{Engine, Proxy, chat, config_file, prose};
use serde_json::Value;

async fn last(proxy: &Proxy) -> Value {
    client::get_json(proxy.admin, "/v1/decisions?n=1").await["decisions"][0].clone()
}

#[tokio::test]
async fn requests_go_by_load_while_decisions_say_where_the_policy_would_have_sent_them() {
    let engines = [Engine::start(&["--time-scale=1000"]), Engine::start(&["--time-scale=1000"])];
    let proxy = Proxy::start(&[&engines[0], &engines[1]], "[routing]\nshadow = true\n").await;
    let body = chat(&prose(8_000, 1), 2, false);
    let (mut spread, mut followed, mut would_hit) = ([0, 0], 0, 0);
    for n in 0..24 {
        let answer = client::chat(proxy.address, &body).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let went = answer.header("x-larder-endpoint").to_owned();
        spread[usize::from(went == engines[1].name())] += 1;
        proxy.becomes_idle().await;
        let decision = last(&proxy).await;
        assert_eq!(
            (&decision["reason"], &decision["endpoint"]),
            (&"shadow".into(), &went.clone().into()),
            "{decision}"
        );
        let would = &decision["shadow"];
        assert!(would["endpoint"].is_string() && would["reason"].is_string(), "{decision}");
        followed += usize::from(would["endpoint"] == went.as_str());
        // Once somebody holds it, the policy would go there; by load it is a matter of luck.
        if n > 0 && would["reason"] == "prefix_hit" {
            would_hit += 1;
            assert!(would["matched_tokens"].as_u64().unwrap() > 1_000, "{decision}");
        }
        assert!(decision["actual_cached_tokens"].is_u64(), "what is really found is recorded");
    }
    assert_eq!(would_hit, 23);
    assert!(spread[0] >= 4 && spread[1] >= 4, "by load: {spread:?}, as the policy would {followed}");
    let shadowed = proxy.metric("larder_decisions_total", &["reason=\"shadow\""]).await;
    assert_eq!(shadowed, 24.0);
}

/// The negative control: the same without the shadow stays in one place.
#[tokio::test]
async fn negative_control_without_it_the_policy_is_followed() {
    let engines = [Engine::start(&["--time-scale=1000"]), Engine::start(&["--time-scale=1000"])];
    let proxy = Proxy::start(&[&engines[0], &engines[1]], "").await;
    let body = chat(&prose(8_000, 1), 2, false);
    let mut homes = std::collections::BTreeSet::new();
    for _ in 0..8 {
        homes.insert(client::chat(proxy.address, &body).await.header("x-larder-endpoint").to_owned());
        proxy.becomes_idle().await;
    }
    assert_eq!(homes.len(), 1);
    assert!(last(&proxy).await["shadow"].is_null());
}

#[tokio::test]
async fn nobody_is_held_in_the_shadow_and_dead_engines_are_gone_around() {
    let engines = [Engine::start(&["--time-scale=1000"]), Engine::start(&["--time-scale=1000"])];
    let extra = "[routing]\nshadow = true\ndefault_prefill_tokens_per_s = 1.0\n";
    let proxy = Proxy::start(&[&engines[0], &engines[1]], extra).await;
    engines[0].kill().await;
    for n in 0..4 {
        let answer = client::chat(proxy.address, &chat(&prose(4_000, n), 2, true)).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.header("x-larder-endpoint"), engines[1].name());
    }
    assert_eq!(proxy.metric("larder_held_seconds_count", &[]).await, 0.0);
    proxy.becomes_idle().await;
}

#[tokio::test]
async fn pass_through_can_be_ordered_on_the_command_line() {
    let engine = Engine::start(&["--time-scale=1000"]);
    let path = config_file(&larder_tests::world::config(&[engine.address], ""));
    let program = Program::start("larder-proxy", &["--pass-through", "--config", path.to_str().unwrap()]);
    let (address, admin) = (program.address("listening"), program.address("admin"));
    client::wait_for(admin, "/readyz", http::StatusCode::OK).await;
    assert_eq!(client::chat(address, &chat("x", 2, false)).await.status, 200);
    let decisions = client::get_json(admin, "/v1/decisions?n=1").await;
    assert_eq!(decisions["decisions"][0]["reason"], "least_load", "{decisions}");
    std::fs::remove_file(path).unwrap();
}
