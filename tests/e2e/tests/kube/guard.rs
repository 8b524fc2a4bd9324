//! Guard mode on a real API server: another controller labels whatever is stale, as often as it likes, and the webhook
//! of the chart refuses what the gate wouldn't give.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "helpers of tests are tests, and print what they measure"
)]

use std::time::Instant;

use e2e::{
    runners::{self, NAMESPACE},
    world::{self, Setup, World},
};
use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use kube::Api;
use serde_json::json;

const DEMO: &str = env!("CARGO_BIN_EXE_demo");
/// As the chart names it for a release `parbake` in the namespace `parbake`.
const WEBHOOK: &str = "parbake.parbake.parbake.dev";

/// The chart's webhook, but for the way to it: there is no Service here.
async fn install_webhook(world: &World) {
    let mut webhook = world
        .chart
        .iter()
        .find(|object| {
            let types = object.types.as_ref().unwrap();
            types.kind == "ValidatingWebhookConfiguration"
        })
        .unwrap()
        .clone();
    assert_eq!(webhook.metadata.name.as_deref(), Some(WEBHOOK));
    let port = world.cluster.api().port();
    let config = &mut webhook.data["webhooks"][0]["clientConfig"];
    assert!(config["service"].is_object() && config["caBundle"].is_null());
    *config = json!({ "url": format!("https://localhost:{port}/v1/webhook/pods") });
    world::create(&world.client, &webhook).await.unwrap();
    let api: Api<ValidatingWebhookConfiguration> = Api::all(world.client.clone());
    world
        .until("the coordinator writes its authority into it", || async {
            let found = api.get(WEBHOOK).await.ok()?;
            let bundle = found.webhooks?.first()?.client_config.ca_bundle.clone()?;
            bundle
                .0
                .starts_with(b"-----BEGIN CERTIFICATE")
                .then_some(())
        })
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(
    not(all(api_server, chart)),
    ignore = "needs KUBEBUILDER_ASSETS and PARBAKE_DEPLOY_TEST=1"
)]
async fn another_controller_labels_greedily_and_gets_what_the_gate_gives() {
    const HOSTS: usize = 8;
    let mut setup = Setup::new(DEMO, HOSTS);
    setup.chart = Some("guard");
    setup.arguments = vec!["--webhook".into(), WEBHOOK.into()];
    let mut world = World::start(setup).await.unwrap();
    install_webhook(&world).await;
    world.begin("guard", 25, 2).await.unwrap();

    // one host takes no Pods, and one Pod works for somebody: both wait
    let pods = world.pods().await;
    let [busy, cordoned] = [&pods[0], &pods[1]];
    let busy = busy.metadata.name.clone().unwrap();
    let cordoned = runners::node(cordoned).unwrap().to_owned();
    runners::set_busy(&world.client, &busy, "account")
        .await
        .unwrap();
    runners::cordon(&world.client, &cordoned, true)
        .await
        .unwrap();

    world.set(|manners| &manners.greedy, true);
    let new = world.image("2", 2).unwrap();
    let begun = Instant::now();
    world.roll(&new, 2).await.unwrap();
    world
        .until_pods("all but these two run it", |pods| {
            pods.len() == HOSTS && pods.iter().filter(|pod| new.runs(pod)).count() == HOSTS - 2
        })
        .await
        .unwrap();
    world
        .until("both are refused for what they are", || async {
            let refused = world.manners.refused();
            let said = |text: &str| refused.keys().any(|why| why.contains(text));
            (said("works") && said("cordoned")).then_some(())
        })
        .await
        .unwrap_or_else(|error| panic!("{:#?}\n{error}", world.manners.refused()));
    runners::set_busy(&world.client, &busy, "").await.unwrap();
    runners::cordon(&world.client, &cordoned, false)
        .await
        .unwrap();
    world.until_all_run(&new, HOSTS).await.unwrap();
    world.check().unwrap();
    let found = world.checker.found();
    assert_eq!(found.labelled.len(), HOSTS);
    assert!(found.withdrawn.is_empty(), "{:?}", found.withdrawn);
    let refused = world.manners.refused();
    println!(
        "{HOSTS} Pods rolled in {:?}, at most {} in flight; {} labels refused:",
        begun.elapsed(),
        found.most_in_flight,
        refused.values().sum::<usize>(),
    );
    for (why, count) in &refused {
        println!("{count:6} × {why}");
        assert!(why.contains("parbake: "), "{why}");
    }
    let metrics = world.metrics().await.unwrap();
    let denials: Vec<&str> = metrics
        .lines()
        .filter(|line| line.starts_with("parbake_pool_gate_denials_total"))
        .collect();
    println!("{}", denials.join("\n"));
    let labels = format!("namespace=\"{NAMESPACE}\",pool=\"xcode\"");
    for reason in ["cap_reached", "busy", "node_cordoned"] {
        let reason = format!("reason=\"{reason}\"");
        assert!(
            denials
                .iter()
                .any(|line| line.contains(&labels) && line.contains(&reason)),
            "{reason}: {denials:#?}"
        );
    }
    // one writer: nothing of ours wrote to a Pod of a pool, or tried to
    let audited = world.api.audited().unwrap();
    assert!(!audited.is_empty());
    for event in &audited {
        let object = &event["objectRef"];
        let writes = !matches!(event["verb"].as_str(), Some("get" | "list" | "watch"));
        let pod = object["resource"] == "pods" && object["namespace"] == NAMESPACE;
        assert!(!(writes && pod), "{event}");
    }

    // failurePolicy Ignore: a coordinator that is away holds up nobody, and then nobody guards
    world.checker.rules.lock().unwrap().clear();
    let third = world.image("3", 3).unwrap();
    world.cluster.kill_coordinator().unwrap();
    let change = json!({ "image": third.reference });
    runners::change_pool(&world.client, "xcode", change)
        .await
        .unwrap();
    world.until_all_run(&third, HOSTS).await.unwrap();
}
