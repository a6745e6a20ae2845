//! Ids: `org/name[@revision][:folder]`.

use std::fmt;

/// The id of a model or data set, with optional revision and folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Id {
    name: String,
    revision: String,
    folder: Option<String>,
}

impl Id {
    /// Parses an id; `None` if the text does not have its form. No part of it can lead outside a folder.
    pub fn parse(text: &str) -> Option<Id> {
        let (rest, folder) = match text.split_once(':') {
            Some((rest, folder)) => (rest, Some(folder)),
            None => (text, None),
        };
        let (name, revision) = rest.split_once('@').unwrap_or((rest, "main"));
        let (org, base) = name.split_once('/')?;
        let plain = |part: &str| {
            let letters = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            !part.is_empty()
                && part.len() <= 96
                && part.chars().all(letters)
                && !part.starts_with(['-', '.'])
                && !part.contains("..")
        };
        let path = |path: &str| !path.is_empty() && path.split('/').all(plain);
        let good = plain(org) && plain(base) && path(revision) && folder.is_none_or(path);
        good.then(|| Id { name: name.to_owned(), revision: revision.to_owned(), folder: folder.map(str::to_owned) })
    }

    /// `org/name`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A branch, a tag or a commit; `main` by default.
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// The selected folder or file in the repository.
    pub fn folder(&self) -> Option<&str> {
        self.folder.as_deref()
    }

    /// Whether the revision is a commit, which never changes.
    pub fn is_commit(&self) -> bool {
        is_commit(&self.revision)
    }
}

/// Whether this is the full hash of a commit.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        if self.revision != "main" {
            write!(f, "@{}", self.revision)?;
        }
        self.folder.as_ref().map_or(Ok(()), |folder| write!(f, ":{folder}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_told_from_paths() {
        let parts = |text: &str| Id::parse(text).map(|id| (id.name, id.revision, id.folder.unwrap_or_default()));
        let of = |name: &str, revision: &str, folder: &str| Some((name.into(), revision.into(), folder.into()));
        assert_eq!(parts("org/name"), of("org/name", "main", ""));
        assert_eq!(parts("org/name-1.5_x@v1.0"), of("org/name-1.5_x", "v1.0", ""));
        assert_eq!(
            parts("org/name@refs/convert/parquet:default/train"),
            of("org/name", "refs/convert/parquet", "default/train")
        );
        assert_eq!(Id::parse("org/name@v1:data").unwrap().to_string(), "org/name@v1:data");
        for no in [
            "name",
            "a/b/c",
            "/org/name",
            "./org/name",
            "../name",
            "org/",
            "org/..",
            "org/a..b",
            "org/name@",
            "org/name@../x",
            "org/name:",
            "org/name:../x",
            "org/name:/x",
            "org name/x",
            "org/näme",
            "",
            "org/name@a//b",
            "C:\\a/b",
            "-o/x",
        ] {
            assert_eq!(parts(no), None, "{no}");
        }
    }
}
