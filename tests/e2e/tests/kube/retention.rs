//! Old images in a cluster: what Pods on a Node refer to stays there.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use e2e::{
    runners,
    world::{Setup, World},
};
use serde_json::Value;

const DEMO: &str = env!("CARGO_BIN_EXE_demo");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(
    not(api_server),
    ignore = "needs KUBEBUILDER_ASSETS: a folder with kube-apiserver and etcd"
)]
async fn an_image_stays_on_a_node_for_as_long_as_a_pod_there_refers_to_it() {
    const HOSTS: usize = 2;
    let mut world = World::start(Setup::new(DEMO, HOSTS)).await.unwrap();
    let old = world.begin("own", 100, HOSTS).await.unwrap();
    // the next release is everywhere, and nobody wants the old image but the Pods that run
    world.set(|manners| &manners.dispatches, false);
    let new = world.image("2", 2).unwrap();
    world.roll(&new, HOSTS).await.unwrap();
    world.until_staged("xcode", &new, HOSTS).await.unwrap();
    let whys = || {
        let asked = ["clean", "--dry-run", "--keep", "1", "--json"];
        let (code, text) = world.parbake(&asked).unwrap();
        assert_eq!(code, 0, "{text}");
        let answer: Value = serde_json::from_str(&text).unwrap();
        let hosts = answer["hosts"].as_array().unwrap().iter();
        let whys = hosts.map(|host| {
            let images = host["images"].as_array().unwrap();
            let digest = old.image.digest.to_string();
            let image = images.iter().find(|image| image["digest"] == *digest);
            let why = image.and_then(|image| image["why"].as_str());
            why.unwrap_or_default().to_owned()
        });
        whys.collect::<Vec<_>>()
    };
    let until = async |what: &str, wanted: &str| {
        world
            .until(what, || async {
                let whys = whys();
                (whys.len() == HOSTS && whys.iter().all(|why| *why == wanted)).then_some(())
            })
            .await
            .unwrap();
    };
    let refer = format!("Pods or pools refer to {}", old.reference);
    until("Pods keep it", &refer).await;

    // they go, and it only rests from its last use
    world.set(|manners| &manners.dispatches, true);
    world.until_all_run(&new, HOSTS).await.unwrap();
    until(
        "no Pod keeps it",
        "it was wanted or cloned from within the last hour",
    )
    .await;
    assert!(
        world
            .pods()
            .await
            .iter()
            .all(|pod| runners::image(pod) == new.reference)
    );
}
