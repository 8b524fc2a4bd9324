//! What is wanted, kept over restarts: one file per image in `wants/`, another one in `asked/`, and two small files
//! beside these directories.
//!
//! `wants/<manifest digest in hex>` is JSON: references, selection, and the manifest's own bytes (base64). So a file is
//! complete, and proves itself: the bytes have the digest that is the file's name. `asked/<manifest digest in hex>` is
//! the same without the manifest. So it is small enough for what replicas share, and enough to ask the registry again.
//! `bandwidth.json` holds the limits that operators set. `roster.json` holds where hosts were last reached: after a
//! restart, hosts go on with the peers that they know until each has connected again.

mod kept_places;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use proto::{
    ChunkIndex, Digest, HostId,
    digest::ParseDigestError,
    image::{Blob, Layout},
};
use serde::{Deserialize, Serialize};
use tracing::error;

pub(crate) use self::kept_places::{KeptPlaces, PLACES};
use crate::{
    predicted::Predicted,
    view::{BandwidthRequest, RecipeView},
};

/// An image that is wanted.
#[derive(Clone, Debug)]
pub(crate) struct Want {
    pub(crate) layout: Arc<Layout>,
    /// The manifest as the registry stores it.
    pub(crate) manifest: bytes::Bytes,
    pub(crate) media_type: String,
    pub(crate) references: BTreeSet<String>,
    /// The pull Secrets of references, as `namespace/name`, where objects name one. They aren't kept on disk, because
    /// the cluster says them again.
    pub(crate) secrets: BTreeMap<String, String>,
    /// The hosts on which the image is wanted; `None`: all.
    pub(crate) hosts: Option<BTreeSet<HostId>>,
    /// References that are wanted on fewer hosts than the image, with those hosts.
    pub(crate) narrowed: BTreeMap<String, BTreeSet<HostId>>,
    /// When each reference was last asked for, in Unix milliseconds, where that is known.
    pub(crate) asked_ms: BTreeMap<String, u64>,
    /// How urgent the image is beside others: higher comes first. `None` where that isn't said.
    pub(crate) priority: Option<i32>,
    pub(crate) plain_http: bool,
    /// The image's recipe, if there is one.
    pub(crate) recipe: Option<Blob>,
    /// Whether hosts made the recipe. Else it was found beside the image in the registry.
    pub(crate) recipe_of_fleet: bool,
    /// Contents for which the recipe isn't used, each with the first chunk that doesn't fit it.
    pub(crate) recipe_doubts: BTreeMap<Digest, ChunkIndex>,
    /// When the image was first wanted, in Unix seconds.
    pub(crate) wanted_at: u64,
    /// What is known of the time that it takes to bring the image everywhere.
    pub(crate) timing: Timing,
    /// What was predicted when the staging began.
    pub(crate) predicted: Option<Arc<Predicted>>,
}

/// What is known of the time that it takes to bring an image everywhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Timing {
    /// The image is asked for now.
    #[default]
    New,
    /// The image was asked for before this start.
    Known(Timed),
    /// The image was asked for before this start, at an unknown time.
    Unknown,
}

/// The time that an image takes, in the form in which it is kept on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Timed {
    /// When what is wanted of the image last changed, in Unix milliseconds.
    pub(crate) asked_at_ms: u64,
    /// How many milliseconds it took from then until the image was everywhere; `None` before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) staged_ms: Option<u64>,
}

impl Timing {
    /// The timing that a kept time means.
    const fn kept(timed: Option<Timed>) -> Self {
        match timed {
            Some(timed) => Self::Known(timed),
            None => Self::Unknown,
        }
    }

    const fn timed(self) -> Option<Timed> {
        match self {
            Self::Known(timed) => Some(timed),
            Self::New | Self::Unknown => None,
        }
    }
}

impl Want {
    pub(crate) fn digest(&self) -> Digest {
        *self.layout.digest()
    }

    /// The recipe as it is shown.
    pub(crate) fn recipe_view(&self) -> Option<RecipeView> {
        let doubted = self.recipe_doubts.keys();
        self.recipe.map(|recipe| RecipeView {
            digest: recipe.digest.to_string(),
            size: recipe.size,
            made_by_fleet: self.recipe_of_fleet,
            doubted_contents: doubted.map(ToString::to_string).collect(),
        })
    }

    /// The hosts on which the image is wanted under this reference; `None`: all.
    pub(crate) fn hosts_of(&self, reference: &str) -> Option<BTreeSet<HostId>> {
        let narrowed = self.narrowed.get(reference).cloned();
        narrowed.or_else(|| self.hosts.clone())
    }

    /// When this reference was last asked for, in Unix milliseconds.
    pub(crate) fn asked_ms_of(&self, reference: &str) -> u64 {
        let known = self.asked_ms.get(reference).copied();
        // earlier versions kept only the time of the image
        known.unwrap_or(self.wanted_at.saturating_mul(1000))
    }
}

/// Where a host was last reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    pub(crate) address: SocketAddr,
    pub(crate) zone: String,
}

/// The files of the wants, the limits and the roster.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    dir: PathBuf,
    wants: PathBuf,
    asked: PathBuf,
}

/// Everything that was kept over a restart.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    /// The wants, in the order in which they were wanted.
    pub(crate) wants: Vec<Want>,
    /// The limits that operators set, if they did.
    pub(crate) bandwidth: Option<BandwidthRequest>,
    pub(crate) roster: BTreeMap<HostId, Place>,
    /// The places under groups' caps.
    pub(crate) places: KeptPlaces,
}

/// A file can't be read or written.
#[derive(Debug, thiserror::Error)]
#[error("state file {path}: {error}")]
pub struct StateError {
    path: PathBuf,
    error: io::Error,
}

#[derive(Serialize, Deserialize)]
struct WantFile {
    references: BTreeSet<String>,
    hosts: Option<BTreeSet<String>>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    narrowed: BTreeMap<String, BTreeSet<String>>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    asked_ms: BTreeMap<String, u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    priority: Option<i32>,
    media_type: String,
    plain_http: bool,
    wanted_at: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    timed: Option<Timed>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    recipe: Option<KeptRecipe>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    predicted: Option<Predicted>,
    manifest: String,
}

/// A recipe in a want's file.
#[derive(Serialize, Deserialize)]
struct KeptRecipe {
    digest: String,
    size: u64,
    /// Hosts made it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    of_fleet: bool,
    /// By content, the first chunk that doesn't fit.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    doubts: BTreeMap<String, u32>,
}

impl KeptRecipe {
    fn of(want: &Want) -> Option<Self> {
        let Blob { digest, size } = want.recipe?;
        let doubts = want.recipe_doubts.iter();
        Some(Self {
            digest: digest.to_string(),
            size,
            of_fleet: want.recipe_of_fleet,
            doubts: doubts
                .map(|(content, chunk)| (content.to_string(), chunk.0))
                .collect(),
        })
    }

    fn parse(&self) -> Result<(Blob, BTreeMap<Digest, ChunkIndex>), String> {
        let doubts = self.doubts.iter();
        let doubts = doubts.map(|(content, chunk)| Ok((content.parse()?, ChunkIndex(*chunk))));
        let doubts: Result<_, ParseDigestError> = doubts.collect();
        let digest = self.digest.parse().map_err(text)?;
        let size = self.size;
        Ok((Blob { digest, size }, doubts.map_err(text)?))
    }
}

/// The directory of what operators asked for, below the state directory.
pub(crate) const ASKED: &str = "asked";

/// The content of a file in `asked/`: what operators asked for, without the manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct AskedFile {
    references: BTreeSet<String>,
    hosts: Option<BTreeSet<String>>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    narrowed: BTreeMap<String, BTreeSet<String>>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    asked_ms: BTreeMap<String, u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    priority: Option<i32>,
    wanted_at: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    timed: Option<Timed>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    predicted: Option<Predicted>,
}

/// An image that operators asked another replica for, and whose manifest this replica lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) digest: Digest,
    pub(crate) references: BTreeSet<String>,
    pub(crate) hosts: Option<BTreeSet<HostId>>,
    pub(crate) narrowed: BTreeMap<String, BTreeSet<HostId>>,
    pub(crate) asked_ms: BTreeMap<String, u64>,
    pub(crate) priority: Option<i32>,
    pub(crate) wanted_at: u64,
    pub(crate) timing: Timing,
    pub(crate) predicted: Option<Arc<Predicted>>,
}

impl Files {
    /// Opens the files: makes the directories, and removes what interrupted writes left. Blocks.
    pub(crate) fn open(state_dir: &Path) -> Result<Self, StateError> {
        let this = Self {
            dir: state_dir.to_path_buf(),
            wants: state_dir.join("wants"),
            asked: state_dir.join(ASKED),
        };
        let places = state_dir.join(PLACES);
        for dir in [&this.wants, &this.asked, &places] {
            durable::make_dir(dir).map_err(at(dir))?;
        }
        for dir in [&this.dir, &this.wants, &this.asked, &places] {
            durable::sweep(dir).map_err(at(dir))?;
        }
        Ok(this)
    }

    /// Reads everything. A damaged file is set aside as `.damaged`, and the log names it, so that one bad file doesn't
    /// stop the service of the fleet. Blocks.
    pub(crate) fn load(&self) -> Result<Kept, StateError> {
        let mut kept = Kept {
            bandwidth: self.small(
                "bandwidth.json",
                "no limits are in force: set them again (PUT /v1/bandwidth)",
            )?,
            ..Kept::default()
        };
        let roster: Option<BTreeMap<String, Place>> = self.small(
            "roster.json",
            "nothing is to be done: hosts say where they are when they connect",
        )?;
        let places = self.small(
            KeptPlaces::FILE,
            "no host has a place: `parbake gate` may let more hosts be worked on than a cap says, until work that began before is done",
        )?;
        kept.places.places = places.unwrap_or_default();
        let ended = self.small(
            KeptPlaces::ENDED,
            "nothing is to be done: who gives a place back once more hears that nothing is known of it",
        )?;
        kept.places.ended = ended.unwrap_or_default();
        let roster = roster.unwrap_or_default();
        for (host, place) in roster {
            if let Ok(host) = host.parse() {
                kept.roster.insert(host, place);
            }
        }
        for name in durable::names(&self.wants).map_err(at(&self.wants))? {
            let path = self.wants.join(&name);
            let bytes = fs::read(&path).map_err(at(&path))?;
            match parse(&name, &bytes) {
                Ok(want) => kept.wants.push(want),
                Err(reason) => {
                    let asked = fs::read(self.asked.join(&name));
                    let asked = asked.is_ok_and(|bytes| parse_asked(&name, &bytes).is_ok());
                    let next = match asked {
                        true => "nothing is lost: the registry is asked for the manifest again",
                        false => "stage the image again",
                    };
                    self.set_aside(&path, &reason, next)?;
                }
            }
        }
        kept.wants
            .sort_by_key(|want| (want.wanted_at, want.digest()));
        Ok(kept)
    }

    /// The images that were asked for and aren't among `wants`, oldest first: another replica had their manifests.
    /// Blocks.
    pub(crate) fn asked(&self, wants: &[Want]) -> Result<Vec<Asked>, StateError> {
        let mut asked = Vec::new();
        for name in durable::names(&self.asked).map_err(at(&self.asked))? {
            let path = self.asked.join(&name);
            let bytes = fs::read(&path).map_err(at(&path))?;
            let parsed = parse_asked(&name, &bytes);
            match parsed {
                Ok(found) if wants.iter().any(|want| want.digest() == found.digest) => {}
                Ok(found) => asked.push(found),
                // `wants/` has the same, undamaged
                Err(reason) if is_wanted(&name, wants) => {
                    self.set_aside(&path, &reason, "nothing is lost: the image is wanted still")?;
                }
                Err(reason) => self.set_aside(&path, &reason, "stage the image again")?,
            }
        }
        asked.sort_by_key(|asked| (asked.wanted_at, asked.digest));
        Ok(asked)
    }

    /// Writes a want to disk. Blocks.
    pub(crate) fn keep(&self, want: &Want) -> Result<(), StateError> {
        let hosts: Option<BTreeSet<String>> = want
            .hosts
            .as_ref()
            .map(|hosts| hosts.iter().map(ToString::to_string).collect());
        let text = |hosts: &BTreeSet<HostId>| hosts.iter().map(ToString::to_string).collect();
        let narrowed: BTreeMap<String, BTreeSet<String>> = want
            .narrowed
            .iter()
            .map(|(reference, hosts)| (reference.clone(), text(hosts)))
            .collect();
        let asked = AskedFile {
            references: want.references.clone(),
            hosts: hosts.clone(),
            narrowed: narrowed.clone(),
            asked_ms: want.asked_ms.clone(),
            priority: want.priority,
            wanted_at: want.wanted_at,
            timed: want.timing.timed(),
            predicted: want.predicted.as_ref().map(|predicted| predicted.summary()),
        };
        self.write(&self.asked.join(want.digest().hex().to_string()), &asked)?;
        let file = WantFile {
            references: want.references.clone(),
            hosts,
            narrowed,
            asked_ms: want.asked_ms.clone(),
            priority: want.priority,
            media_type: want.media_type.clone(),
            plain_http: want.plain_http,
            wanted_at: want.wanted_at,
            timed: want.timing.timed(),
            recipe: KeptRecipe::of(want),
            predicted: want.predicted.as_deref().cloned(),
            manifest: STANDARD.encode(&want.manifest),
        };
        self.write(&self.wants.join(want.digest().hex().to_string()), &file)
    }

    /// Removes a want from disk. Blocks.
    pub(crate) fn drop(&self, image: &Digest) -> Result<(), StateError> {
        for dir in [&self.asked, &self.wants] {
            let path = dir.join(image.hex().to_string());
            match durable::remove(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(at(&path)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Writes the limits to disk. Blocks.
    pub(crate) fn keep_bandwidth(&self, bandwidth: BandwidthRequest) -> Result<(), StateError> {
        self.write(&self.dir.join("bandwidth.json"), &bandwidth)
    }

    /// Writes the hosts' places to disk. Blocks.
    pub(crate) fn keep_roster(&self, roster: &BTreeMap<HostId, Place>) -> Result<(), StateError> {
        let roster: BTreeMap<&str, &Place> = roster
            .iter()
            .map(|(host, place)| (host.as_str(), place))
            .collect();
        self.write(&self.dir.join("roster.json"), &roster)
    }

    /// Writes the places under groups' caps to disk. Blocks.
    pub(crate) fn keep_places(&self, places: &KeptPlaces) -> Result<(), StateError> {
        self.write(&self.dir.join(KeptPlaces::ENDED), &places.ended)?;
        self.write(&self.dir.join(KeptPlaces::FILE), &places.places)
    }

    fn write(&self, path: &Path, value: &impl Serialize) -> Result<(), StateError> {
        let text = serde_json::to_vec(value).map_err(|error| at(path)(error.into()))?;
        durable::write(path, &text, durable::SECRET).map_err(at(path))
    }

    fn small<T: for<'de> Deserialize<'de>>(
        &self,
        name: &str,
        next: &'static str,
    ) -> Result<Option<T>, StateError> {
        let path = self.dir.join(name);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(at(&path)(error)),
        };
        match serde_json::from_slice(&text) {
            Ok(value) => Ok(Some(value)),
            Err(error) => {
                self.set_aside(&path, &error.to_string(), next)?;
                Ok(None)
            }
        }
    }

    /// Renames a damaged file. `next` tells an operator what to do about it.
    fn set_aside(&self, path: &Path, reason: &str, next: &'static str) -> Result<(), StateError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let aside = self.dir.join(format!("{name}.damaged"));
        error!(
            file = %path.display(),
            aside = %aside.display(),
            reason,
            next,
            "state file is damaged; it is set aside"
        );
        fs::rename(path, &aside).map_err(at(path))
    }
}

fn is_wanted(name: &str, wants: &[Want]) -> bool {
    wants
        .iter()
        .any(|want| want.digest().hex().to_string() == name)
}

fn parse_hosts(hosts: &BTreeSet<String>) -> Result<BTreeSet<HostId>, String> {
    let hosts = hosts.iter().map(|host| host.parse());
    hosts
        .collect::<Result<_, proto::host::ParseHostIdError>>()
        .map_err(text)
}

fn parse_narrowed(
    narrowed: &BTreeMap<String, BTreeSet<String>>,
) -> Result<BTreeMap<String, BTreeSet<HostId>>, String> {
    let narrowed = narrowed.iter();
    narrowed
        .map(|(reference, hosts)| Ok((reference.clone(), parse_hosts(hosts)?)))
        .collect()
}

/// The references that this version accepts. An earlier version kept some that tart can't say.
fn parse_references(references: BTreeSet<String>) -> Result<BTreeSet<String>, String> {
    let mut refused = String::new();
    let mut good = BTreeSet::new();
    for reference in references {
        match reference.parse::<proto::Reference>() {
            Ok(_) => drop(good.insert(reference)),
            Err(reason) => refused = format!("image reference {reference} is refused: {reason}"),
        }
    }
    match good.is_empty() && !refused.is_empty() {
        true => Err(refused),
        false => Ok(good),
    }
}

fn parse_asked(name: &str, bytes: &[u8]) -> Result<Asked, String> {
    let file: AskedFile = serde_json::from_slice(bytes).map_err(text)?;
    Ok(Asked {
        digest: format!("sha256:{name}").parse().map_err(text)?,
        references: parse_references(file.references)?,
        hosts: file.hosts.as_ref().map(parse_hosts).transpose()?,
        narrowed: parse_narrowed(&file.narrowed)?,
        asked_ms: file.asked_ms,
        priority: file.priority,
        wanted_at: file.wanted_at,
        timing: Timing::kept(file.timed),
        predicted: file.predicted.map(Arc::new),
    })
}

fn parse(name: &str, bytes: &[u8]) -> Result<Want, String> {
    let digest: Digest = format!("sha256:{name}").parse().map_err(text)?;
    let file: WantFile = serde_json::from_slice(bytes).map_err(text)?;
    let manifest = STANDARD.decode(&file.manifest).map_err(text)?;
    let layout = Layout::parse(&manifest, &digest).map_err(text)?;
    let recipe_of_fleet = file.recipe.as_ref().is_some_and(|recipe| recipe.of_fleet);
    let recipe = file.recipe.map(|recipe| recipe.parse()).transpose()?;
    let (recipe, recipe_doubts) =
        recipe.map_or_else(Default::default, |(recipe, doubts)| (Some(recipe), doubts));
    Ok(Want {
        layout: Arc::new(layout),
        manifest: manifest.into(),
        media_type: file.media_type,
        references: parse_references(file.references)?,
        secrets: BTreeMap::new(),
        hosts: file.hosts.as_ref().map(parse_hosts).transpose()?,
        narrowed: parse_narrowed(&file.narrowed)?,
        asked_ms: file.asked_ms,
        priority: file.priority,
        plain_http: file.plain_http,
        recipe,
        recipe_of_fleet,
        recipe_doubts,
        wanted_at: file.wanted_at,
        timing: Timing::kept(file.timed),
        predicted: file.predicted.map(Arc::new),
    })
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> StateError {
    let path = path.to_path_buf();
    move |error| StateError { path, error }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A small image of `layers` raw layers of `raw_bytes` each; `seed` tells images apart.
    pub(crate) fn manifest(seed: &str, layers: u64, raw_bytes: u64) -> Vec<u8> {
        use proto::image::{
            CONFIG_TYPE, DISK_TYPE, MANIFEST_TYPE, NVRAM_TYPE, RAW_DIGEST_ANNOTATION,
            RAW_SIZE_ANNOTATION,
        };
        let name = |what: &str| Digest::of(format!("{seed} {what}").as_bytes()).to_string();
        let mut list = vec![
            serde_json::json!({"mediaType": CONFIG_TYPE, "digest": name("config"), "size": 10}),
        ];
        for layer in 0..layers {
            list.push(serde_json::json!({
                "mediaType": DISK_TYPE,
                "digest": name(&format!("blob {layer}")),
                "size": raw_bytes / 2 + 1,
                "annotations": {
                    RAW_SIZE_ANNOTATION: raw_bytes.to_string(),
                    RAW_DIGEST_ANNOTATION: name(&format!("raw {layer}")),
                },
            }));
        }
        list.push(
            serde_json::json!({"mediaType": NVRAM_TYPE, "digest": name("nvram"), "size": 10}),
        );
        serde_json::json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": name("oci"), "size": 2},
            "layers": list,
        })
        .to_string()
        .into_bytes()
    }

    pub(crate) fn want(seed: &str, layers: u64, raw_bytes: u64) -> Want {
        want_of(seed, manifest(seed, layers, raw_bytes))
    }

    /// A stacked image: a base, and an overlay of one layer.
    pub(crate) fn stacked_want(seed: &str) -> Want {
        use proto::image::{
            BLOCK_SIZE_ANNOTATION, CHUNK_COUNT_ANNOTATION, DISK_SIZE_ANNOTATION,
            FILE_DIGEST_ANNOTATION, OVERLAY_TYPE, RAW_DIGEST_ANNOTATION,
        };
        let flat = manifest(seed, 2, 1 << 20);
        let mut manifest: serde_json::Value = serde_json::from_slice(&flat).unwrap();
        let layers = &mut manifest["layers"];
        for at in [1, 2] {
            let raw = layers[at]["annotations"][RAW_DIGEST_ANNOTATION].clone();
            layers[at]["annotations"][FILE_DIGEST_ANNOTATION] = raw;
        }
        layers[2]["mediaType"] = OVERLAY_TYPE.into();
        layers[2]["annotations"][CHUNK_COUNT_ANNOTATION] = "1".into();
        manifest["annotations"] = serde_json::json!({
            DISK_SIZE_ANNOTATION: "8388608", BLOCK_SIZE_ANNOTATION: "4096",
        });
        want_of(seed, manifest.to_string().into_bytes())
    }

    fn want_of(seed: &str, manifest: Vec<u8>) -> Want {
        Want {
            layout: Arc::new(Layout::parse(&manifest, &Digest::of(&manifest)).unwrap()),
            manifest: manifest.into(),
            media_type: proto::image::MANIFEST_TYPE.into(),
            references: [format!("127.0.0.1:5000/{seed}:latest")].into(),
            secrets: BTreeMap::new(),
            hosts: None,
            narrowed: BTreeMap::new(),
            asked_ms: BTreeMap::new(),
            priority: None,
            plain_http: true,
            recipe: None,
            recipe_of_fleet: false,
            recipe_doubts: BTreeMap::new(),
            wanted_at: 5,
            timing: Timing::New,
            predicted: None,
        }
    }

    /// A recipe; `seed` tells recipes apart.
    pub(crate) fn recipe(seed: &str) -> Blob {
        Blob {
            digest: Digest::of(format!("{seed} recipe").as_bytes()),
            size: 180,
        }
    }

    #[test]
    fn what_is_wanted_comes_back_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::open(dir.path()).unwrap();
        let (mut one, mut two) = (want("one", 2, 100), want("two", 1, 100));
        two.hosts = Some(["mini-1".parse().unwrap()].into());
        let (everywhere, narrow) = ("r.test/one:all".to_owned(), "r.test/one:some".to_owned());
        one.references = [everywhere.clone(), narrow.clone()].into();
        one.narrowed = [(narrow.clone(), ["mini-2".parse().unwrap()].into())].into();
        one.asked_ms = [(narrow.clone(), 4_321)].into();
        one.priority = Some(-7);
        two.wanted_at = 4;
        let timed = Timed {
            asked_at_ms: 4_200,
            staged_ms: Some(27_600),
        };
        two.timing = Timing::Known(timed);
        two.recipe = Some(recipe("two"));
        let host = crate::predicted::PredictedHost::default();
        let hosts = [("mini-1".to_owned(), host)].into();
        let predicted = Predicted::new(Predicted::default().view, hosts);
        two.predicted = Some(Arc::new(predicted));
        two.recipe_doubts = [(two.layout.config().digest, ChunkIndex(0))].into();
        files.keep(&one).unwrap();
        files.keep(&two).unwrap();
        files
            .keep_bandwidth(BandwidthRequest {
                upload_bytes_per_second: 7,
                download_bytes_per_second: 0,
            })
            .unwrap();
        let place = Place {
            address: "127.0.0.1:1".parse().unwrap(),
            zone: "z".into(),
        };
        let roster = BTreeMap::from([("mini-1".parse().unwrap(), place)]);
        files.keep_roster(&roster).unwrap();

        let kept = Files::open(dir.path()).unwrap().load().unwrap();
        let digests: Vec<_> = kept.wants.iter().map(Want::digest).collect();
        assert_eq!(digests, [two.digest(), one.digest()]);
        assert_eq!(kept.wants[0].hosts, two.hosts);
        assert_eq!(kept.wants[0].timing, two.timing);
        assert_eq!(kept.wants[0].predicted, two.predicted);
        assert_eq!(kept.wants[1].predicted, None);
        assert_eq!(
            (kept.wants[0].recipe, &kept.wants[0].recipe_doubts),
            (two.recipe, &two.recipe_doubts)
        );
        // a file of an earlier version says nothing of a recipe
        assert_eq!(kept.wants[1].recipe, None);
        assert_eq!(kept.wants[1].timing, Timing::Unknown);
        assert_eq!(kept.wants[1].manifest, one.manifest);
        assert_eq!(kept.wants[1].hosts_of(&everywhere), None);
        assert_eq!(
            kept.wants[1].hosts_of(&narrow),
            one.narrowed.get(&narrow).cloned()
        );
        assert_eq!(kept.wants[1].asked_ms_of(&narrow), 4_321);
        // an earlier version kept only the time of the image
        assert_eq!(kept.wants[1].asked_ms_of(&everywhere), 5_000);
        assert_eq!(kept.bandwidth.unwrap().upload_bytes_per_second, 7);
        assert_eq!(kept.roster, roster);

        // a replica that shares only what was asked for asks the registry again
        fs::remove_dir_all(dir.path().join("wants")).unwrap();
        let files = Files::open(dir.path()).unwrap();
        let asked = files.asked(&[]).unwrap();
        let digests: Vec<_> = asked.iter().map(|asked| asked.digest).collect();
        assert_eq!(digests, [two.digest(), one.digest()]);
        assert_eq!(
            (asked[0].hosts.clone(), asked[0].timing),
            (two.hosts.clone(), two.timing)
        );
        let predicted = asked[0].predicted.as_ref().unwrap();
        assert!(predicted.hosts.is_empty(), "replicas share the sum");
        assert_eq!(asked[1].narrowed, one.narrowed);
        assert_eq!(asked[1].asked_ms, one.asked_ms);
        assert_eq!(files.asked(&[two.clone()]).unwrap().len(), 1);
        files.keep(&one).unwrap();
        files.keep(&two).unwrap();

        files.drop(&one.digest()).unwrap();
        files.drop(&one.digest()).unwrap();
        assert_eq!(files.asked(&[]).unwrap().len(), 1);
        assert_eq!(files.load().unwrap().wants.len(), 1);
    }

    #[test]
    fn torn_and_tampered_files_are_set_aside_and_the_rest_is_served() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::open(dir.path()).unwrap();
        let (good, torn, changed) = (
            want("good", 1, 9),
            want("torn", 1, 9),
            want("changed", 1, 9),
        );
        for want in [&good, &torn, &changed] {
            files.keep(want).unwrap();
        }
        let path = |want: &Want| {
            dir.path()
                .join("wants")
                .join(want.digest().hex().to_string())
        };
        let bytes = fs::read(path(&torn)).unwrap();
        fs::write(path(&torn), &bytes[..bytes.len() / 2]).unwrap();
        fs::copy(path(&good), path(&changed)).unwrap();
        fs::write(dir.path().join("wants/.x.1.1.tmp"), b"killed while writing").unwrap();
        fs::write(dir.path().join("bandwidth.json"), b"{").unwrap();

        let kept = Files::open(dir.path()).unwrap().load().unwrap();
        assert_eq!(kept.wants.len(), 1);
        assert_eq!(kept.wants[0].digest(), good.digest());
        assert_eq!(kept.bandwidth, None);
        assert!(dir.path().join("bandwidth.json.damaged").exists());
        assert_eq!(fs::read_dir(dir.path().join("wants")).unwrap().count(), 1);
    }
}
