//! A host that is killed and comes back, and one that falls silent.

use std::{net::SocketAddr, time::Duration};

use tokio::{sync::oneshot, time::timeout};
use wire::{Authorised, CloseReason, Credentials, Endpoint, ResetSecret, Settings};

use crate::fleet::{Authority, LOOPBACK, Leaf, host, pair};

/// One life of a host's program: it accepts one connection, and ends as by `kill -9`, without a word.
struct Life {
    address: SocketAddr,
    kill: oneshot::Sender<()>,
    thread: std::thread::JoinHandle<()>,
}

impl Life {
    async fn begin(credentials: Credentials, secret: Option<ResetSecret>, at: SocketAddr) -> Self {
        let (kill, killed) = oneshot::channel();
        let (sender, address) = oneshot::channel();
        let settings = Settings {
            reset_secret: secret,
            ..Settings::default()
        };
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let kept = runtime.block_on(async {
                let endpoint = Endpoint::bind(at, credentials, &settings).unwrap();
                endpoint.authorise(Authorised::Anyone);
                sender.send(endpoint.local_addr().unwrap()).unwrap();
                let mut connection = None;
                let lived = async {
                    loop {
                        let incoming = endpoint.accept().await.unwrap();
                        connection = Some(incoming.establish().await.unwrap());
                    }
                };
                tokio::select! {
                    () = lived => {}
                    _ = killed => {}
                }
                (endpoint, connection)
            });
            // nothing runs any more that could send a close; then the socket goes
            drop(runtime);
            drop(kept);
        });
        Self {
            address: address.await.unwrap(),
            kill,
            thread,
        }
    }

    fn kill(self) {
        self.kill.send(()).unwrap();
        self.thread.join().unwrap();
    }
}

async fn after_a_restart(before: Option<ResetSecret>, after: Option<ResetSecret>) -> bool {
    let fleet = Authority::new();
    let a = fleet.endpoint("a");
    let first = Life::begin(
        fleet.credentials(&Leaf::of("b")),
        before,
        LOOPBACK.parse().unwrap(),
    )
    .await;
    let address = first.address;
    let connection = a.connect(address, &host("b")).await.unwrap();
    first.kill();
    // the second life has another certificate, as after a renewal
    let second = Life::begin(fleet.credentials(&Leaf::of("b")), after, address).await;
    let (mut sender, _receiver) = connection.open().await.unwrap();
    sender
        .write(bytes::Bytes::from_static(b"are you there?"))
        .await
        .unwrap();
    let ended = timeout(Duration::from_secs(3), connection.closed()).await;
    second.kill();
    ended.is_ok_and(|reason| reason == CloseReason::Reset)
}

#[tokio::test]
async fn who_was_killed_and_came_back_ends_its_connections_at_the_first_packet() {
    let secret = || Some(ResetSecret::new([7; 32]));
    assert!(after_a_restart(secret(), secret()).await);
}

#[tokio::test]
async fn another_secret_ends_nothing() {
    let secret = |byte| Some(ResetSecret::new([byte; 32]));
    assert!(!after_a_restart(secret(7), secret(8)).await);
    assert!(!after_a_restart(None, None).await);
}

#[tokio::test]
async fn silence_is_so_many_looks_at_which_nothing_came() {
    let pair = pair().await;
    let every = Duration::from_millis(50);
    let began = tokio::time::Instant::now();
    // what the handshake left, and the search for the path's MTU, are over long before the next keep-alive
    let silent = pair.connections.0.silent(3, every);
    timeout(Duration::from_secs(4), silent).await.unwrap();
    assert!(began.elapsed() >= 3 * every);
}

#[tokio::test]
async fn who_hears_something_now_and_then_is_not_in_silence() {
    let fleet = Authority::new();
    let chatty = Settings {
        keep_alive: Duration::from_millis(50),
        ..Settings::default()
    };
    let (a, b) = (fleet.endpoint("a"), fleet.endpoint_with("b", &chatty));
    let (there, here) = crate::fleet::join(&a, &b, "b").await;
    let (there, _here) = (there.unwrap(), here.unwrap());
    let silent = there.silent(3, Duration::from_millis(500));
    assert!(timeout(Duration::from_secs(3), silent).await.is_err());
}
