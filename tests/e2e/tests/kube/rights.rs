//! The coordinator with no more rights than the chart gives it, against a real API server that writes down every
//! request of a service account: a roll needs nothing that isn't granted, and nothing else is asked for.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "helpers of tests are tests, and print what they measure"
)]

use std::collections::BTreeMap;

use e2e::{
    runners::{self, NAMESPACE},
    world::{Setup, World, account_token},
};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::{Value, json};

const DEMO: &str = env!("CARGO_BIN_EXE_demo");

/// Requests by what they were and how they were answered.
fn requests(audited: &[Value]) -> BTreeMap<(String, u64), usize> {
    let mut requests = BTreeMap::new();
    for event in audited {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let object = &event["objectRef"];
        let what = [
            text(&event["verb"]),
            text(&object["resource"]),
            text(&object["subresource"]),
        ];
        let code = event["responseStatus"]["code"].as_u64().unwrap_or(0);
        *requests
            .entry((what.join(" ").trim_end().to_owned(), code))
            .or_default() += 1;
    }
    requests
}

async fn status_of(world: &World, pod: &str, token: Option<&str>) -> u16 {
    let path = format!("/v1/namespaces/{NAMESPACE}/pods/{pod}/drain");
    world.ask(&path, token).await.unwrap().0
}

fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(
    not(all(api_server, chart)),
    ignore = "needs KUBEBUILDER_ASSETS and PARBAKE_DEPLOY_TEST=1"
)]
async fn the_charts_roles_suffice_and_runners_are_told_to_leave_by_their_own_tokens() {
    const HOSTS: usize = 4;
    let mut setup = Setup::new(DEMO, HOSTS);
    // the narrowest: no rights on Pods but in the namespaces that are watched
    setup.chart = Some("namespaced");
    setup.arguments = vec!["--watch-namespaces".into(), format!("ci,{NAMESPACE}")];
    let mut world = World::start(setup).await.unwrap();
    let old = world.begin("own", 50, 2).await.unwrap();

    // nobody leaves by itself while the endpoint is asked
    world.set(|manners| &manners.dispatches, false);
    let new = world.image("2", 2).unwrap();
    let pods = world.pods().await;
    let (first, other) = (&pods[0], &pods[1]);
    let token = async |pod: &Pod| {
        account_token(&world.client, NAMESPACE, name(pod), Some(pod))
            .await
            .unwrap()
    };
    let (own, others) = (token(first).await, token(other).await);
    let plain = account_token(&world.client, NAMESPACE, name(first), None)
        .await
        .unwrap();
    let api = world.token().unwrap();
    for token in [&own, &plain, &api] {
        assert_eq!(status_of(&world, name(first), Some(token)).await, 204);
    }
    // stale but not labelled: it stays, and takes jobs
    let prepull = json!({ "spec": { "paused": true } });
    let paused = runners::prepulls(&world.client);
    paused
        .patch("xcode", &PatchParams::default(), &Patch::Merge(&prepull))
        .await
        .unwrap();
    world.roll(&new, 2).await.unwrap();
    world
        .until("the first Pod is stale", || async {
            let path = format!("/v1/pods/{NAMESPACE}/{}", name(first));
            let (_, body) = world.ask(&path, Some(&api)).await.ok()?;
            let view: Value = serde_json::from_str(&body).ok()?;
            (view["stale"] == true).then_some(())
        })
        .await
        .unwrap();
    assert_eq!(status_of(&world, name(first), Some(&own)).await, 204);
    let prepull = json!({ "spec": { "paused": false } });
    paused
        .patch("xcode", &PatchParams::default(), &Patch::Merge(&prepull))
        .await
        .unwrap();
    world
        .until_found("two are labelled", |found| found.labelled.len() == 2)
        .await
        .unwrap();
    let labelled = world.checker.found().labelled[0].pod.clone();
    let labelled = pods.iter().find(|pod| name(pod) == labelled).unwrap();
    let own = token(labelled).await;
    let bystander = pods.iter().find(|pod| name(pod) != name(labelled)).unwrap();
    let others = if name(labelled) == name(other) {
        token(bystander).await
    } else {
        others
    };
    let plain = account_token(&world.client, NAMESPACE, name(labelled), None)
        .await
        .unwrap();
    for (token, expected) in [
        (Some(&own), 410),
        (Some(&plain), 410),
        (Some(&api), 410),
        (Some(&others), 403),
        (Some(&"garbage".to_owned()), 401),
        (None, 401),
    ] {
        let token = token.map(String::as_str);
        assert_eq!(
            status_of(&world, name(labelled), token).await,
            expected,
            "{token:?}"
        );
    }
    assert_eq!(status_of(&world, "nobody", Some(&api)).await, 404);
    assert_eq!(status_of(&world, "nobody", Some(&own)).await, 403);

    // one Pod hasn't started when the pool changes again: it is reaped with its account
    world.set(|manners| &manners.dispatches, true);
    world.until_all_run(&new, HOSTS).await.unwrap();
    world.set(|manners| &manners.boots, false);
    let pods = runners::pods(&world.client);
    let gone = name(&world.pods().await[0]).to_owned();
    pods.delete(&gone, &DeleteParams::default().grace_period(0))
        .await
        .unwrap();
    world
        .until_pods("its successor is Pending", |pods| {
            pods.len() == HOSTS && pods.iter().any(|pod| runners::phase(pod) == "Pending")
        })
        .await
        .unwrap();
    world.roll(&old, 2).await.unwrap();
    world
        .until_found("it is reaped", |found| !found.reaped.is_empty())
        .await
        .unwrap();
    let reaped = world.checker.found().reaped[0].clone();
    let accounts: Api<ServiceAccount> = Api::namespaced(world.client.clone(), NAMESPACE);
    world
        .until("its account is gone", || async {
            accounts
                .get_opt(&reaped)
                .await
                .ok()?
                .is_none()
                .then_some(())
        })
        .await
        .unwrap();
    world.set(|manners| &manners.boots, true);
    world.until_all_run(&old, HOSTS).await.unwrap();
    world.until_staged("xcode", &old, HOSTS).await.unwrap();
    world.check().unwrap();

    let requests = requests(&world.api.audited().unwrap());
    for ((what, code), count) in &requests {
        println!("{count:5} × {what} -> {code}");
        assert!(!matches!(code, 401 | 403), "{what} is forbidden");
    }
    let done = |wanted: &str| {
        requests
            .keys()
            .any(|(what, code)| what == wanted && *code < 300)
    };
    for wanted in [
        "list pods",
        "patch pods",
        "delete pods",
        "get serviceaccounts",
        "delete serviceaccounts",
        "patch nodes",
        "create imageprepulls",
        "patch imageprepulls",
        "patch imageprepulls status",
        "create events",
        "create tokenreviews",
        "update leases",
        "update secrets",
    ] {
        assert!(done(wanted), "{wanted} isn't among them: {requests:#?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(
    not(all(api_server, chart)),
    ignore = "needs KUBEBUILDER_ASSETS and PARBAKE_DEPLOY_TEST=1"
)]
async fn an_api_server_that_turns_requests_away_only_slows_a_roll() {
    const HOSTS: usize = 6;
    let mut setup = Setup::new(DEMO, HOSTS);
    // who may do everything is never turned away: the coordinator mustn't be such a one
    setup.chart = Some("own");
    setup.lease = std::time::Duration::from_secs(15);
    setup.flags = vec![
        "--enable-priority-and-fairness=false".into(),
        "--max-mutating-requests-inflight=1".into(),
        "--max-requests-inflight=2".into(),
    ];
    let mut world = World::start(setup).await.unwrap();
    world.begin("own", 50, 3).await.unwrap();
    let new = world.image("2", 2).unwrap();
    world.roll(&new, 3).await.unwrap();
    world.until_all_run(&new, HOSTS).await.unwrap();
    world.check().unwrap();
    let requests = requests(&world.api.audited().unwrap());
    let total: usize = requests.values().sum();
    let away: usize = requests
        .iter()
        .filter(|((_, code), _)| *code == 429)
        .map(|(_, count)| count)
        .sum();
    println!("{away} of {total} requests were turned away");
    assert!(away > 0, "nothing was turned away, so nothing was proved");
    let log = world.cluster.coordinator_log();
    let said = log.iter().filter(|line| line.to_string().contains("429"));
    println!("{} lines say so", said.count());
}
