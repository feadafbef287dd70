//! The stored form of a record: one JSON text, readable with any SQL client, versioned per kind.

use nephos_types::{Error, ErrorKind, Labels, Name, ProjectId, Result, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{
    Kind, Revision,
    record::{Meta, Record},
};

#[derive(Serialize)]
struct Write<'a, K> {
    version: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    project: Option<ProjectId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a Name>,
    #[serde(skip_serializing_if = "Labels::is_empty")]
    labels: &'a Labels,
    created: i64,
    updated: i64,
    body: &'a K,
}

#[derive(Deserialize)]
struct Read<'a> {
    version: u32,
    #[serde(default)]
    project: Option<ProjectId>,
    #[serde(default)]
    name: Option<Name>,
    #[serde(default)]
    labels: Labels,
    created: i64,
    updated: i64,
    #[serde(borrow)]
    body: &'a RawValue,
}

/// The stored form; everything but kind, id and revision, which have their own columns.
pub(crate) fn encode<K: Kind>(meta: &Meta<K::Id>, body: &K) -> Result<String> {
    let form = Write {
        version: K::VERSION,
        project: meta.project,
        name: meta.name.as_ref(),
        labels: &meta.labels,
        created: meta.created_at.as_micros(),
        updated: meta.updated_at.as_micros(),
        body,
    };
    serde_json::to_string(&form)
        .map_err(|error| Error::internal(format!("A record of kind `{}` cannot be stored", K::NAME), error))
}

/// The record in a stored form of this or an older version.
pub(crate) fn decode<K: Kind>(id: &str, revision: Revision, data: &str) -> Result<Record<K>> {
    let wrong = |error: serde_json::Error| {
        Error::internal(format!("The stored form of {} `{id}` cannot be read", K::NAME), error)
    };
    let form: Read<'_> = serde_json::from_str(data).map_err(wrong)?;
    let body = if form.version == K::VERSION {
        serde_json::from_str(form.body.get()).map_err(wrong)?
    } else if form.version > K::VERSION {
        return Err(Error::new(ErrorKind::Unsupported, "newer_data", "The data was written by a newer Nephos")
            .detail(format!("{} `{id}` has version {}, this program knows up to {}", K::NAME, form.version, K::VERSION))
            .next("start the version that wrote it, or a later one", None));
    } else {
        let mut body: serde_json::Value = serde_json::from_str(form.body.get()).map_err(wrong)?;
        for version in form.version..K::VERSION {
            body = K::migrate(version, body)?;
        }
        serde_json::from_value(body).map_err(wrong)?
    };
    Ok(Record {
        meta: Meta {
            id: id.parse()?,
            project: form.project,
            name: form.name,
            labels: form.labels,
            revision,
            created_at: Timestamp::from_micros(form.created),
            updated_at: Timestamp::from_micros(form.updated),
        },
        body,
    })
}
