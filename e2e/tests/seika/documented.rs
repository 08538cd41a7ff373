//! What `docs/functions/seika.md` shows, as it shows it.

use std::path::Path;

use e2e::kube::{Result, ensure, fail};

use super::rig::{NAMESPACE, Rig};

/// The page's example is taken, and becomes what the page says.
pub(crate) async fn example(rig: &Rig) -> Result<()> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/functions/seika.md");
    let page = std::fs::read_to_string(page)?;
    let example = page.split("```yaml\n").nth(1);
    let Some(example) = example.and_then(|rest| rest.split("```").next()) else {
        return fail("there is no example in the page");
    };
    let file = rig.dir.join("documented.yaml");
    std::fs::write(&file, example)?;
    let file = file.display().to_string();
    rig.kubectl(&["apply", "--validate=strict", "-n", NAMESPACE, "-f", &file])?;
    rig.converges("hello", &[("node-0", 1), ("node-1", 2), ("node-2", 3)])
        .await?;
    let table = rig.kubectl(&["get", "seika", "hello", "-n", NAMESPACE])?;
    for line in table.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let Some((_, but_age)) = words.split_last() else {
            continue;
        };
        let documented = page.lines().any(|shown| {
            let shown: Vec<&str> = shown.split_whitespace().collect();
            shown.len() == words.len() && shown.starts_with(but_age)
        });
        ensure(documented, || format!("{line:?} is not in the page"))?;
    }
    let fields = rig.kubectl(&["explain", "seika.spec"])?;
    ensure(fields.contains("repurika"), || fields.clone())?;
    rig.remove("hello").await
}
