//! Tests what a registry is asked, and what hosts are given for it.

use super::*;
use crate::wants::tests::recipe;

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_moved_leaves_its_old_image_and_hosts_without_room_are_named() {
    let world = World::new("[coordinator]\nopen = true").await;
    let old = world.registry.put("one", &manifest("old", 1, 1 << 20));
    let mut agent = world.agent("mini-1").await;
    world
        .until("it is staging", async || world.stage("one").await.ok())
        .await;
    let new = world.registry.put("one", &manifest("new", 1, 1 << 20));
    let reply = world.stage("one").await.unwrap();
    assert_eq!(reply.image.digest, new.to_string());
    let images: Vec<ImageView> = world.get("/v1/images").await;
    assert_eq!(images.len(), 1, "{old} is superseded");

    // 3 TiB don't fit on a volume of 1 TiB; 600 GiB do, but not beside what is there
    world
        .registry
        .put("large", &manifest("large", 400, 4 << 30));
    let error = world.stage("large").await.unwrap_err().to_string();
    assert!(error.contains("mini-1"), "{error}");
    world
        .registry
        .put("tight", &manifest("tight", 150, 4 << 30));
    let tight = world.stage("tight").await.unwrap();
    assert_eq!(tight.short_of_room[0].host, "mini-1");
    let plan: crate::view::PlanReply = world
        .post("/v1/plan", json!({"reference": world.reference("large")}))
        .await
        .unwrap();
    assert!(plan.predicted_seconds > 1.0 && plan.hosts[0].short_of_room.is_some());
    agent.report(Report::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_get_short_lived_pull_tokens_and_fresh_ones_before_they_expire() {
    let world = World::with(
        "[coordinator]\nopen = true",
        Registry(Arc::default(), Some(Arc::default())),
    )
    .await;
    let digest = world.registry.put("one", &manifest("one", 1, 3 << 20));
    let mut agent = world.agent("mini-1").await;
    world
        .until("it is staging", async || world.stage("one").await.ok())
        .await;
    agent.image(&digest, message::StageState::Staging, 0).await;
    let mut seen = std::collections::BTreeSet::new();
    while seen.len() < 2 {
        if let Some(token) = agent.stage_order().await.token {
            assert!(
                token.authorization.starts_with("Bearer pull-") && token.expires_in_seconds <= 2
            );
            seen.insert(token.authorization);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_known_digest_is_asked_for_with_each_secrets_own_credentials() {
    let registry = Registry(Arc::default(), Some(Arc::default()));
    let digest = registry.put("one", &manifest("one", 1, 3 << 20));
    let (address, serving) = registry.serve(CancellationToken::new()).await;
    let mut background = JoinSet::new();
    background.spawn(serving);
    let registries = Registries::new(Origin {
        plain_http: [address.to_string()].into(),
        ..Origin::default()
    });
    let registries = registries.unwrap();
    let learn = |secret: &str, password: &str| {
        let login = json!({"username": "robot", "password": password});
        let config = json!({"auths": {address.to_string(): login}});
        registries
            .learn(secret, config.to_string().as_bytes())
            .unwrap();
    };
    learn("ci/good", "secret");
    learn("ci/bad", "guessed");
    let good = "ci/good".to_owned();
    let tag = format!("{address}/image:one");
    let found = registries.resolve(&tag, None, Some(&good)).await.unwrap();
    assert_eq!(found.digest(), digest);

    let by_digest = format!("{address}/image@{digest}");
    let ask = async |secret: Option<&str>| {
        let secret = secret.map(str::to_owned);
        registries.resolve(&by_digest, None, secret.as_ref()).await
    };
    assert!(ask(Some("ci/good")).await.is_ok());
    // the coordinator knows the manifest, and the repository is the same
    for other in [Some("ci/bad"), Some("ci/unknown"), None] {
        assert!(ask(other).await.is_err(), "{other:?}");
    }
    learn("ci/bad", "secret");
    assert!(ask(Some("ci/bad")).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_staged_with_the_recipe_that_stands_beside_it_and_without_an_odd_one() {
    let world = World::new("[coordinator]\nopen = true").await;
    let digest = world.registry.put("one", &manifest("one", 1, 3 << 20));
    let plan = json!({"reference": world.reference("one")});
    let mut agent = world.agent("mini-1").await;
    world
        .until("it is staging", async || world.stage("one").await.ok())
        .await;
    let asked = world.post("/v1/plan", plan.clone());
    let asked: crate::view::PlanReply = asked.await.unwrap();
    assert_eq!(asked.recipe, None);
    assert_eq!(agent.stage_order().await.recipe, None);

    // larger than any recipe of this image, or a content of it: both are passed over
    let layout = proto::Layout::parse(&manifest("one", 1, 3 << 20), &digest).unwrap();
    let odd = [
        Blob {
            size: 1 << 30,
            ..recipe("one")
        },
        layout.config(),
    ];
    for odd in odd {
        world.registry.put_recipe(&digest, odd);
        assert_eq!(world.stage("one").await.unwrap().image.recipe, None);
    }

    // pushed after the image was staged, and found when somebody asks again
    world.registry.put_recipe(&digest, recipe("one"));
    let found = world.stage("one").await.unwrap().image.recipe.unwrap();
    assert_eq!(
        (found.digest, found.size),
        (recipe("one").digest.to_string(), recipe("one").size)
    );
    let ordered = agent.stage_order().await.recipe.unwrap();
    assert_eq!(ordered.digest, recipe("one").digest.as_bytes());
    let asked: crate::view::PlanReply = world.post("/v1/plan", plan).await.unwrap();
    assert_eq!(asked.recipe.unwrap().size, recipe("one").size);

    // another one is pushed: the one that hosts have stays
    world.registry.put_recipe(&digest, recipe("two"));
    let again = world.stage("one").await.unwrap().image.recipe.unwrap();
    assert_eq!(again.digest, recipe("one").digest.to_string());
}
