//! ServiceAccounts that a crash between two deletions left behind.

use super::*;

fn the_account(name: &str, owner: &str, created: &str) -> Value {
    json!({
        "name": name,
        "namespace": "ns",
        "uid": format!("uid of {name}"),
        "resourceVersion": "3",
        "creationTimestamp": created,
        "ownerReferences": [{ "apiVersion": "x/v1", "kind": "X", "name": "x", "uid": owner }],
    })
}

fn owned_pod(phase: &str) -> Value {
    let mut pod = the_pod(phase);
    pod["metadata"]["ownerReferences"] =
        json!([{ "apiVersion": "x/v1", "kind": "X", "name": "x", "uid": "owner" }]);
    pod
}

#[tokio::test]
async fn an_account_that_a_cut_left_behind_goes_when_nobody_can_need_it() {
    const OLD: &str = "2020-01-01T00:00:00Z";
    let mut stand = Stand::new("Running", &[Answer::Status(429)]);
    stand.settle().await;
    stand.see(
        Kind::Pods,
        Seen::Applied(Box::new(dynamic(&owned_pod("Running")))),
    );
    let now = Timestamp::now().to_string();
    stand.shared.lock().unwrap().accounts = vec![
        the_account("left", "owner", OLD),
        the_account("young", "owner", &now),
        the_account("foreign", "somebody", OLD),
        // a Pod with this account's name exists
        the_account("p", "owner", OLD),
    ];
    let look = async |stand: &mut Stand| {
        stand.keeper.accounts.look_again();
        let now = stand.now();
        stand.keeper.sweep_accounts(now);
        stand.settle().await;
        stand.shared.lock().unwrap().accounts.len()
    };
    assert_eq!(look(&mut stand).await, 4, "its Pod may be about to be seen");
    stand.shared.lock().unwrap().answers = [Answer::Status(500)].into();
    assert_eq!(look(&mut stand).await, 4);
    assert_eq!(look(&mut stand).await, 4, "it is seen alone anew");
    assert_eq!(look(&mut stand).await, 3);
    assert_eq!(look(&mut stand).await, 3);
    assert_eq!(look(&mut stand).await, 3);
    let writes = stand.writes();
    assert_eq!(
        writes[1..],
        ["DELETE left Status(500)", "DELETE left Done"],
        "{writes:?}"
    );
}

#[tokio::test]
async fn an_account_outlives_its_pod_no_longer_than_the_term_allows() {
    // the lease is lost between the Pod's deletion and the account's
    let shared = shared("Pending", &[]);
    shared.lock().unwrap().accounts = vec![the_account("p", "owner", "2020-01-01T00:00:00Z")];
    let asked = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = asked.clone();
    let may: MayWrite = Arc::new(move || {
        let before = counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        (before < 2).then_some(Duration::from_mins(1))
    });
    let target = Target {
        key: ObjectKey::new("ns", "p"),
        uid: "uid".into(),
        resource_version: "10".into(),
        owner: Some("owner".into()),
    };
    let writer = Writer::new(fake(&shared), may);
    let written = write::pod(writer, target, PodWrite::Reap).await;
    assert_eq!(written.outcome, Outcome::Done);
    assert_eq!(shared.lock().unwrap().writes, ["DELETE Done"]);
    assert_eq!(shared.lock().unwrap().accounts.len(), 1);
}
