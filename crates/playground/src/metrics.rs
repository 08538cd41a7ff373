//! Reading a Prometheus text page.

/// One scraped page.
#[derive(Debug, Clone, Default)]
pub struct Metrics(String);

impl Metrics {
    /// Takes a page as scraped.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The page as scraped.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.0
    }

    /// Sum of all series of `name` whose labels contain each of `labels`, written
    /// as on the page (`operation="list"`). Zero when there is none.
    #[must_use]
    pub fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        self.series(name, labels).map(|(_, value)| value).sum()
    }

    /// The series of `name` whose labels contain each of `labels`: label text and
    /// value.
    pub fn series<'a>(
        &'a self,
        name: &'a str,
        labels: &'a [&str],
    ) -> impl Iterator<Item = (&'a str, f64)> {
        self.0.lines().filter_map(move |line| {
            let rest = line.strip_prefix(name)?;
            let (found, value) = match rest.strip_prefix('{') {
                Some(rest) => rest.rsplit_once("} ")?,
                None => ("", rest.strip_prefix(' ')?),
            };
            if !labels.iter().all(|label| found.contains(label)) {
                return None;
            }
            Some((found, value.split(' ').next()?.parse().ok()?))
        })
    }

    /// Whether any series of `name` is on the page.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.series(name, &[]).next().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::Metrics;

    #[test]
    fn sums_by_label() {
        let page = "# HELP a b\na{x=\"1\",y=\"2\"} 3\na{x=\"2\",y=\"2\"} 4.5\nab 9\nc 7\n";
        let metrics = Metrics::new(page.to_owned());
        assert_eq!(metrics.sum("a", &[]), 7.5);
        assert_eq!(metrics.sum("a", &["x=\"2\""]), 4.5);
        assert_eq!(metrics.sum("c", &[]), 7.0);
        assert!(metrics.has("ab") && !metrics.has("b"));
    }
}
