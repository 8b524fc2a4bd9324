//! A fleet's authority and endpoints with its certificates.

use std::{net::SocketAddr, time::Duration};

use proto::HostId;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType,
};
use time::OffsetDateTime;
use wire::{Authorised, Connection, Credentials, Endpoint, Settings};

pub(crate) const LOOPBACK: &str = "127.0.0.1:0";

pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) pem: String,
}

/// What a certificate says; the default is a good one.
pub(crate) struct Leaf {
    pub(crate) names: Vec<&'static str>,
    pub(crate) from: OffsetDateTime,
    pub(crate) until: OffsetDateTime,
    pub(crate) usages: Vec<ExtendedKeyUsagePurpose>,
}

impl Leaf {
    pub(crate) fn of(name: &'static str) -> Self {
        let now = OffsetDateTime::now_utc();
        Self {
            names: vec![name],
            from: now - Duration::from_secs(3600),
            until: now + Duration::from_secs(3600),
            usages: vec![
                ExtendedKeyUsagePurpose::ClientAuth,
                ExtendedKeyUsagePurpose::ServerAuth,
            ],
        }
    }

    pub(crate) fn expired(name: &'static str) -> Self {
        Self {
            until: OffsetDateTime::now_utc() - Duration::from_secs(60),
            ..Self::of(name)
        }
    }
}

pub(crate) struct Issued {
    pub(crate) chain: String,
    pub(crate) key: String,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    pub(crate) fn issue(&self, leaf: &Leaf) -> Issued {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.subject_alt_names = leaf
            .names
            .iter()
            .map(|name| SanType::DnsName((*name).try_into().unwrap()))
            .collect();
        params.not_before = leaf.from;
        params.not_after = leaf.until;
        params.extended_key_usages.clone_from(&leaf.usages);
        let key = KeyPair::generate().unwrap();
        Issued {
            chain: params.signed_by(&key, &self.issuer).unwrap().pem(),
            key: key.serialize_pem(),
        }
    }

    pub(crate) fn credentials(&self, leaf: &Leaf) -> Credentials {
        let issued = self.issue(leaf);
        Credentials::from_pem(&issued.chain, &issued.key, &self.pem).unwrap()
    }

    pub(crate) fn endpoint(&self, name: &'static str) -> Endpoint {
        self.endpoint_with(name, &Settings::default())
    }

    pub(crate) fn endpoint_with(&self, name: &'static str, settings: &Settings) -> Endpoint {
        bind(self.credentials(&Leaf::of(name)), settings)
    }
}

pub(crate) fn bind(credentials: Credentials, settings: &Settings) -> Endpoint {
    let endpoint = Endpoint::bind(LOOPBACK.parse().unwrap(), credentials, settings).unwrap();
    endpoint.authorise(Authorised::Anyone);
    endpoint
}

pub(crate) fn host(name: &str) -> HostId {
    name.parse().unwrap()
}

pub(crate) fn only(names: &[&str]) -> Authorised {
    Authorised::Only(names.iter().map(|name| host(name)).collect())
}

pub(crate) fn address(endpoint: &Endpoint) -> SocketAddr {
    endpoint.local_addr().unwrap()
}

/// Both ends of a connection from one endpoint to the host `name` at another.
pub(crate) async fn join(
    from: &Endpoint,
    to: &Endpoint,
    name: &str,
) -> (
    Result<Connection, wire::ConnectError>,
    Result<Connection, wire::AcceptError>,
) {
    let name = host(name);
    tokio::join!(from.connect(address(to), &name), async {
        to.accept().await.unwrap().establish().await
    })
}

/// Two hosts of one fleet, connected.
pub(crate) struct Pair {
    pub(crate) endpoints: (Endpoint, Endpoint),
    pub(crate) connections: (Connection, Connection),
}

pub(crate) async fn pair() -> Pair {
    let fleet = Authority::new();
    let (a, b) = (fleet.endpoint("a"), fleet.endpoint("b"));
    let (there, here) = join(&a, &b, "b").await;
    Pair {
        endpoints: (a, b),
        connections: (there.unwrap(), here.unwrap()),
    }
}
