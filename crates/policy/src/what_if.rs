//! What the other profiles would have spared.

use crate::change::Change;
use crate::error::RuleErrors;
use crate::facts::Facts;
use crate::policy::Policy;
use crate::profile::Profile;

/// Asks of each write whether the weaker profiles would make it volatile, so that somebody
/// who runs `strict` can see what they would spare.
pub struct WhatIf {
    policies: [Policy; Self::PROFILES.len()],
}

impl WhatIf {
    /// The profiles that are asked.
    pub const PROFILES: [Profile; 3] = [Profile::Balanced, Profile::Ephemeral, Profile::Ci];

    /// Compiles the profiles; see [`Policy::profile`].
    ///
    /// # Errors
    /// Those of [`Policy::profile`].
    pub fn new(kube_prefix: Option<&str>) -> Result<WhatIf, RuleErrors> {
        let [a, b, c] = Self::PROFILES;
        Ok(WhatIf {
            policies: [
                Policy::profile(a, kube_prefix)?,
                Policy::profile(b, kube_prefix)?,
                Policy::profile(c, kube_prefix)?,
            ],
        })
    }

    /// Whether the answer depends on the value before the write, or on whether there was one.
    pub fn needs_old(&self, key: &[u8]) -> bool {
        self.policies.iter().any(|policy| policy.needs_old(key))
    }

    /// The profiles under which the write would be volatile. Reads the values once for all.
    pub fn volatile_in(&self, key: &[u8], change: Change<'_>) -> ProfileSet {
        let mut facts = Facts::new(change);
        let mut set = 0;
        for (i, policy) in self.policies.iter().enumerate() {
            if !policy.class_of(key, &mut facts).is_durable() {
                set |= 1 << i;
            }
        }
        ProfileSet(set)
    }
}

/// Some of [`WhatIf::PROFILES`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProfileSet(u8);

impl ProfileSet {
    /// Whether the profile `WhatIf::PROFILES[index]` is in the set.
    pub fn contains(self, index: usize) -> bool {
        index < WhatIf::PROFILES.len() && self.0 & (1 << index) != 0
    }
}
