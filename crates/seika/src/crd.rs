//! The resource's definition, as it is installed.

use kube::CustomResourceExt;

use crate::api::Seika;

/// What the file with the definition begins with.
const HEAD: &str = "# Printed by `orlop-fleet seika crd`.\n";

/// The definition as YAML.
///
/// # Errors
/// If it cannot be written as YAML; it always can.
pub fn yaml() -> Result<String, serde_yaml_ng::Error> {
    Ok(format!(
        "{HEAD}{}",
        serde_yaml_ng::to_string(&Seika::crd())?
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_packaged_definition_is_the_printed_one() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../packaging/fleet/crd/seikas.yaml"
        );
        let packaged = std::fs::read_to_string(path).unwrap();
        let printed = yaml().unwrap();
        assert!(
            packaged == printed,
            "print it anew: orlop-fleet seika crd > packaging/fleet/crd/seikas.yaml\n{printed}"
        );
    }
}
