//! What a mirror answers to whatever a client may ask, in the forms of the distribution specification.

use std::io::{Read as _, Write as _};

use proptest::{prelude::*, test_runner::TestRunner};
use proto::image::MANIFEST_TYPE;
use serde_json::json;

use super::*;

#[test]
fn a_client_gets_what_the_registry_has_and_the_second_one_from_here() {
    let world = World::new(1, &ImageSpec::plain(24, 8));
    let pull = || world.pull_at_once(1).remove(0);
    let pulled = pull();
    world.check(&pulled);
    println!("first byte after {:?}", pulled.first_byte);
    assert_eq!(pulled.breaks, 0);
    let sent = world.site.served();
    assert_eq!(sent, size(&pulled));
    world.check(&pull());
    assert_eq!(world.site.served(), sent);
}

#[test]
fn a_blob_is_had_whole_and_in_parts_with_the_headers_of_both() {
    let world = World::new(1, &ImageSpec::plain(24, 8));
    let (digest, size) = world.image.largest_blob();
    let bytes = world.image.blob(&digest).unwrap();
    let blob = world.blob(0, &digest);
    let total = usize::try_from(size).unwrap();
    world.run(async {
        let head = ask(Method::HEAD, &blob, &[]).await;
        assert_eq!(head.status, StatusCode::OK);
        assert_eq!(head.header("content-length"), size.to_string());
        assert_eq!(head.header("accept-ranges"), "bytes");
        assert_eq!(head.header("docker-content-digest"), digest.to_string());
        assert!(head.body.is_empty());
        for (range, start, end) in [
            ("bytes=5-".to_owned(), 5, total),
            ("bytes=7-1048576".into(), 7, 1 << 20 | 1),
            ("bytes=-9".into(), total - 9, total),
            (format!("bytes={}-", total - 1), total - 1, total),
        ] {
            let part = ask(Method::GET, &blob, &[("range", &range)]).await;
            assert_eq!(part.status, StatusCode::PARTIAL_CONTENT, "{range}");
            assert_eq!(
                part.header("content-range"),
                format!("bytes {start}-{}/{size}", end - 1)
            );
            assert!(part.body == bytes[start..end], "{range}");
        }
        let beyond = format!("bytes={size}-");
        let beyond = ask(Method::GET, &blob, &[("range", &beyond)]).await;
        assert_eq!(beyond.status, StatusCode::RANGE_NOT_SATISFIABLE);
        assert_eq!(beyond.header("content-range"), format!("bytes */{size}"));
        let headers = [("range", "bytes=1-2"), ("if-range", "\"x\"")];
        let whole = ask(Method::GET, &blob, &headers).await;
        assert_eq!(whole.status, StatusCode::OK);
    });
}

#[test]
fn a_manifest_its_tags_and_what_refers_to_it_are_had_page_by_page() {
    let world = World::small();
    let (mirror, registry) = (world.mirror(0), &world.site.registry);
    let (image, origin) = (&world.image, registry.addr());
    world.run(async {
        // containerd's form, by digest, and what a client accepts
        let path = format!("{NAME}/manifests/{}?ns={origin}", image.digest);
        let named = get(&format!("http://{mirror}/v2/{path}")).await;
        assert_eq!(
            (named.status, &named.body),
            (StatusCode::OK, &image.manifest)
        );
        assert_eq!(named.header("content-type"), MANIFEST_TYPE);
        assert_eq!(
            named.header("docker-content-digest"),
            image.digest.to_string()
        );
        let head = ask(Method::HEAD, &world.at(0, "manifests/1"), &[]).await;
        assert_eq!(
            head.header("content-length"),
            image.manifest.len().to_string()
        );
        let tags = get(&world.at(0, "tags/list")).await;
        assert_eq!(tags.status, StatusCode::OK);
        assert!(tags.body.windows(3).any(|text| text == b"\"1\""));

        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let signature = |kind: &str| {
            let subject = json!({
                "mediaType": MANIFEST_TYPE,
                "digest": image.digest.to_string(),
                "size": image.manifest.len(),
            });
            let empty = json!({
                "mediaType": "application/vnd.oci.empty.v1+json",
                "digest": Digest::of(b"{}").to_string(),
                "size": 2,
            });
            let manifest = json!({
                "schemaVersion": 2,
                "mediaType": media_type,
                "artifactType": kind,
                "config": empty,
                "layers": [],
                "subject": subject,
            });
            registry.put_manifest(NAME, kind, media_type, manifest.to_string().into())
        };
        let (signed, _listed) = (signature("signature"), signature("materials"));
        let referrers = world.at(0, &format!("referrers/{}", image.digest));
        let manifests = |answer: &Answer| {
            assert_eq!(answer.status, StatusCode::OK);
            answer.json()["manifests"].as_array().unwrap().clone()
        };
        let all = get(&referrers).await;
        assert_eq!(manifests(&all).len(), 2);
        assert_eq!(
            all.header("content-type"),
            "application/vnd.oci.image.index.v1+json"
        );
        let some = get(&format!("{referrers}?artifactType=signature")).await;
        assert_eq!(manifests(&some).len(), 1);
        assert_eq!(manifests(&some)[0]["digest"], signed.to_string());
        assert_eq!(some.header("oci-filters-applied"), "artifactType");

        let other = Bytes::from_static(b"{}");
        registry.put_manifest("other/thing", "1", media_type, other);
        let first = get(&format!("http://{mirror}/v2/{origin}/_catalog?n=1")).await;
        assert_eq!(first.json()["repositories"], json!([NAME]));
        let next = first.header("link").strip_prefix('<').unwrap();
        let (next, _) = next.split_once('>').unwrap();
        let second = get(&format!("http://{mirror}{next}")).await;
        assert_eq!(second.json()["repositories"], json!(["other/thing"]));
        assert_eq!(second.header("link"), "");
    });
}

#[test]
fn what_a_registry_calls_a_page_is_only_bytes_and_no_page_may_ask() {
    let world = World::small();
    let page = Bytes::from_static(b"<script>fetch('/v2/_catalog')</script>");
    let registry = &world.site.registry;
    registry.put_manifest(NAME, "page", "text/html", page);
    let page = world.at(0, "manifests/page");
    world.run(async {
        let got = get(&page).await;
        assert_eq!(got.header("content-type"), "application/octet-stream");
        assert_eq!(got.header("x-content-type-options"), "nosniff");
        let policy = got.header("content-security-policy");
        assert_eq!(policy, "default-src 'none'; sandbox");
        for header in [
            ("sec-fetch-site", "cross-site"),
            ("origin", "http://a.example"),
        ] {
            let refused = ask(Method::GET, &page, &[header]).await;
            assert_eq!(refused.status, StatusCode::FORBIDDEN, "{header:?}");
        }
    });
}

#[test]
fn errors_have_the_specifications_form() {
    let world = World::small();
    let (mirror, name) = (world.mirror(0), world.name());
    let none = Digest::of(b"none");
    let of_name = |path: &str| format!("{name}/{path}");
    world.run(async {
        let base = get(&format!("http://{mirror}/v2/")).await;
        assert_eq!(base.status, StatusCode::OK);
        for (method, path, status, code) in [
            (Method::POST, of_name("blobs/uploads/"), 405, "UNSUPPORTED"),
            (Method::PUT, of_name("manifests/1"), 405, "UNSUPPORTED"),
            (Method::DELETE, of_name("manifests/1"), 405, "UNSUPPORTED"),
            (
                Method::GET,
                of_name("manifests/none"),
                404,
                "MANIFEST_UNKNOWN",
            ),
            (
                Method::GET,
                of_name(&format!("blobs/{none}")),
                404,
                "BLOB_UNKNOWN",
            ),
            (Method::GET, of_name("blobs/md5:00"), 400, "DIGEST_INVALID"),
            (Method::GET, "image/manifests/1".into(), 404, "NAME_UNKNOWN"),
            (Method::GET, "_catalog".into(), 404, "NAME_UNKNOWN"),
        ] {
            let answer = ask(method, &format!("http://{mirror}/v2/{path}"), &[]).await;
            assert_eq!(answer.status.as_u16(), status, "{path}");
            assert_eq!(answer.code(), code, "{path}");
        }
    });
}

#[test]
fn a_client_that_can_fall_back_is_told_to_and_no_answer_is_made_up() {
    for (set, status) in [("auto", 404), ("redirect", 307)] {
        let mut world = World::set(&format!(
            "[mirror]\nlisten = '127.0.0.1:0'\nstall_seconds = 1\non_trouble = '{set}'\n"
        ));
        let (mirror, origin) = (world.mirror(0), world.site.registry.addr());
        world.site.down();
        let path = format!("/v2/{NAME}/manifests/1");
        let answer = world.run(get(&format!("http://{mirror}{path}?ns={origin}")));
        assert_eq!(answer.status.as_u16(), status, "{set}");
        if status == 307 {
            assert_eq!(answer.header("location"), format!("http://{origin}{path}"));
        } else {
            assert_eq!(answer.code(), "UNAVAILABLE");
        }
    }
}

/// Anything may be asked; what comes back is an answer below 500 or a closed connection, and the mirror stays.
#[test]
fn any_request_is_answered_or_let_go() {
    let world = World::small();
    let mirror = world.mirror(0);
    let name = world.name();
    let (digest, _) = world.image.largest_blob();
    let blob = format!("/v2/{name}/blobs/{digest}");
    let path = prop_oneof![
        Just(blob),
        Just(format!("/v2/{name}/manifests/1")),
        "/v2/[a-z0-9._:/%-]{0,60}",
        "/[ -~]{0,80}",
    ];
    let header = prop_oneof![
        "Range: bytes=[0-9]{0,21}-[0-9]{0,21}",
        "Accept: [ -~]{0,60}",
        "Authorization: (Basic|Bearer|) ?[a-zA-Z0-9+/=]{0,40}",
        "If-Range: [ -~]{0,20}",
        "Content-Length: [0-9]{0,20}",
        "[A-Za-z-]{1,20}: [ -~]{0,200}",
        "[\\x00-\\x7f]{0,40}",
    ];
    let method =
        prop_oneof![3 => Just("GET".to_owned()), 1 => Just("HEAD".into()), 1 => "[A-Z]{1,10}"];
    let case = (method, path, prop::collection::vec(header, 0..6));
    let mut runner = TestRunner::new(ProptestConfig {
        cases: 300,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let ran = runner.run(&case, |(method, path, headers)| {
        let mut stream = std::net::TcpStream::connect(mirror).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{}\r\n\r\n",
            headers.join("\r\n")
        );
        // fails where it was let go already. Its own side stays open: a client that closed it counts as gone, and
        // nothing would be answered
        if stream.write_all(head.as_bytes()).is_err() {
            return Ok(());
        }
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => prop_assert!(false, "{error}: {head}"),
        }
        if answer.is_empty() {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&answer[..answer.len().min(12)]).into_owned();
        let status: u16 = text.get(9..12).unwrap_or_default().parse().unwrap_or(0);
        prop_assert!((200..500).contains(&status), "{text}: {head}");
        Ok(())
    });
    ran.unwrap();
    let bytes = world.run(whole(&world.blob(0, &digest)));
    assert!(bytes == world.image.blob(&digest).unwrap());
}
