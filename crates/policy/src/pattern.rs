//! Which keys a rule takes.

use std::fmt;

/// The API server's prefix as rules write it; a policy puts the real ones in its place.
pub(crate) const PREFIX_IN_RULES: &str = "/registry";

/// A set of keys.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Pattern {
    /// As it stands in the rule file.
    text: String,
    /// Whether what follows is relative to the API server's prefix.
    below_prefix: bool,
    parts: Parts,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Parts {
    /// All keys that start so.
    Prefix(String),
    /// Keys that match, `*` standing for anything within a segment, `**` for all the rest.
    Glob(String),
}

impl Pattern {
    /// All keys that start with `text`. The error is a sentence for a person.
    pub(crate) fn prefix(text: &str) -> Result<Self, String> {
        if text.contains('*') {
            return Err(format!(
                "prefix {text:?} has a *; patterns are written as key = {text:?}"
            ));
        }
        Self::new(text, Parts::Prefix)
    }

    /// Keys that match a pattern. The error is a sentence for a person.
    pub(crate) fn key(text: &str) -> Result<Self, String> {
        if let Some(at) = text.find("**")
            && at + 2 != text.len()
        {
            return Err(format!(
                "key {text:?} goes on after **, which takes all the rest"
            ));
        }
        Self::new(text, Parts::Glob)
    }

    fn new(text: &str, parts: fn(String) -> Parts) -> Result<Self, String> {
        if text.is_empty() {
            return Err("it is empty; \"/\" would be every key that starts so".to_string());
        }
        let below = text
            .strip_prefix(PREFIX_IN_RULES)
            .filter(|rest| rest.starts_with('/'));
        Ok(Pattern {
            text: text.to_string(),
            below_prefix: below.is_some(),
            parts: parts(below.unwrap_or(text).to_string()),
        })
    }

    /// Whether a key is in the set. `below` is the key without the API server's prefix, if it
    /// has it.
    pub(crate) fn matches(&self, key: &[u8], below: Option<&[u8]>) -> bool {
        let key = match (self.below_prefix, below) {
            (false, _) => key,
            (true, Some(below)) => below,
            (true, None) => return false,
        };
        match &self.parts {
            Parts::Prefix(prefix) => key.starts_with(prefix.as_bytes()),
            Parts::Glob(glob) => glob_matches(glob.as_bytes(), key),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Linear in the key but for backing up to the last star, which a slash ends.
fn glob_matches(glob: &[u8], key: &[u8]) -> bool {
    let (mut g, mut k) = (0, 0);
    // Where to go on, one byte of the key later, if what follows the last star does not fit.
    let mut retry: Option<(usize, usize)> = None;
    while k < key.len() || g < glob.len() {
        match glob.get(g) {
            Some(b'*') if glob.get(g + 1) == Some(&b'*') => return true,
            Some(b'*') => {
                retry = Some((g, k));
                g += 1;
                continue;
            }
            Some(byte) if Some(byte) == key.get(k) => {
                if *byte == b'/' {
                    retry = None;
                }
                g += 1;
                k += 1;
                continue;
            }
            _ => {}
        }
        match retry {
            Some((star, at)) if at < key.len() && key[at] != b'/' => {
                retry = Some((star, at + 1));
                g = star + 1;
                k = at + 1;
            }
            _ => return false,
        }
    }
    true
}

/// The API server's prefix as it stands before keys: as the API server does, with a slash
/// before it and none after it.
pub(crate) fn normal_prefix(prefix: &str) -> String {
    let inner = prefix.trim_matches('/');
    if inner.is_empty() {
        String::new()
    } else {
        format!("/{inner}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn glob(text: &str, key: &str) -> bool {
        Pattern::key(text).expect("a pattern").matches(
            key.as_bytes(),
            key.strip_prefix("/registry").map(str::as_bytes),
        )
    }

    #[test]
    fn stars_stay_within_a_segment() {
        assert!(glob("/registry/pods/*/web", "/registry/pods/a/web"));
        assert!(glob("/registry/pods/ci-*/*", "/registry/pods/ci-1/p"));
        assert!(glob("/registry/pods/ci-*/*", "/registry/pods/ci-/p"));
        assert!(!glob("/registry/pods/ci-*/*", "/registry/pods/cd-1/p"));
        assert!(!glob("/registry/pods/*", "/registry/pods/a/b"));
        assert!(glob("/registry/pods/**", "/registry/pods/a/b"));
        assert!(glob("/registry/pods/a", "/registry/pods/a"));
        assert!(!glob("/registry/pods/a", "/registry/pods/ab"));
        assert!(!glob("/registry/pods/ab", "/registry/pods/a"));
        assert!(glob("/a/*b*c", "/a/xbxbxc"));
        assert!(!glob("/a/*b*c", "/a/xbxb/c"));
        assert!(glob("/a/*/c*", "/a//c"));
        assert!(!glob("/registry/pods/*", "/registryx/pods/a"));
        assert!(glob("a*", "a"));
    }

    #[test]
    fn what_cannot_match_as_meant_is_refused() {
        assert!(Pattern::prefix("/registry/pods/*/").is_err());
        assert!(Pattern::prefix("").is_err());
        assert!(Pattern::key("/registry/**/x").is_err());
    }

    #[test]
    fn another_prefix_of_the_api_server() {
        let pattern = Pattern::prefix("/registry/pods/").expect("a prefix");
        assert!(pattern.matches(b"/k8s/pods/a", Some(b"/pods/a")));
        assert!(!pattern.matches(b"/registry/pods/a", None));
        let literal = Pattern::prefix("/elsewhere/").expect("a prefix");
        assert!(literal.matches(b"/elsewhere/a", None));
        assert_eq!(normal_prefix("k8s/"), "/k8s");
        assert_eq!(normal_prefix("/"), "");
    }
}
