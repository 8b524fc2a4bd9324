use axum::{body::Bytes, extract::Extension, routing::get, routing::post};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

struct Server {
    address: SocketAddr,
    _running: JoinSet<()>,
}

async fn server(router: Router) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut running = JoinSet::new();
    running.spawn(serve(listener, None, router, CancellationToken::new()));
    Server {
        address,
        _running: running,
    }
}

fn router() -> Router {
    Router::new()
        .route(
            "/",
            get(async |Extension(remote): Extension<Remote>| remote.0.to_string()),
        )
        .route("/length", post(async |body: Bytes| body.len().to_string()))
}

/// Sends this text on a new connection, and returns everything that comes back.
async fn ask(address: SocketAddr, text: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let read = stream.read_to_string(&mut answer);
    timeout(Duration::from_secs(20), read)
        .await
        .unwrap()
        .unwrap();
    answer
}

const HELLO: &str = "GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";

#[tokio::test]
async fn silent_connections_keep_nobody_out() {
    let server = server(router()).await;
    let mut silent = Vec::new();
    for number in 0..CONNECTIONS {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        // some connections send nothing, some stop within the head, some within the body
        let said: &[u8] = match number % 3 {
            0 => b"",
            1 => b"GET / HTTP/1.1\r\nhost: lo",
            _ => b"POST /length HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\nhalf",
        };
        stream.write_all(said).await.unwrap();
        silent.push(stream);
    }
    // the connections' grace is over, and none has timed out yet
    sleep(GRACE).await;
    let began = Instant::now();
    for _ in 0..50 {
        let answer = ask(server.address, HELLO).await;
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.ends_with("127.0.0.1"),
            "{answer}"
        );
    }
    assert!(began.elapsed() < HEAD_TIMEOUT / 2, "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_request_that_is_worked_on_is_not_cut_for_others() {
    let (release, released) = watch::channel(false);
    let (begin, mut begun) = mpsc::channel(8);
    let slow = move || {
        let (mut released, begin) = (released.clone(), begin.clone());
        async move {
            begin.send(()).await.unwrap();
            drop(released.wait_for(|released| *released).await);
            "done"
        }
    };
    let server = server(router().route("/slow", get(slow))).await;
    let address = server.address;
    let mut working = JoinSet::new();
    for _ in 0..8 {
        working.spawn(async move { ask(address, &HELLO.replace("/ ", "/slow ")).await });
    }
    for _ in 0..8 {
        begun.recv().await.unwrap();
    }
    // by now these connections would give way if they waited for their clients
    sleep(GRACE).await;
    let mut silent = Vec::new();
    for _ in 0..2 * CONNECTIONS {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    sleep(GRACE).await;
    assert!(ask(address, HELLO).await.starts_with("HTTP/1.1 200"));
    release.send_replace(true);
    while let Some(answer) = working.join_next().await {
        assert!(answer.unwrap().ends_with("done"));
    }
}

#[tokio::test]
async fn a_body_that_does_not_come_whole_in_time_is_refused() {
    let server = server(router()).await;
    let whole = "POST /length HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 5\r\n\r\n12345";
    assert!(ask(server.address, whole).await.ends_with("\r\n\r\n5"));
    let began = Instant::now();
    let cut = whole.replace("length: 5", "length: 6");
    let answer = ask(server.address, &cut).await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(began.elapsed() >= BODY_TIMEOUT - Duration::from_millis(100));
}

#[tokio::test]
async fn a_page_whose_name_was_rebound_reads_nothing() {
    let names = LocalNames::new(["coordinator.lan".to_owned()]);
    let server = server(local_only(router(), names)).await;
    for (host, status) in [
        ("localhost:7473", "200"),
        ("127.0.0.1", "200"),
        ("coordinator.lan", "200"),
        ("evil.example", "403"),
        ("localhost\r\nhost: evil.example", "403"),
    ] {
        let answer = ask(server.address, &HELLO.replace("localhost", host)).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{host}: {answer}"
        );
    }
    let target = HELLO.replace("GET /", "GET http://evil.example/");
    assert!(
        ask(server.address, &target)
            .await
            .starts_with("HTTP/1.1 403")
    );
}
