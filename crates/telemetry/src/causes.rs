//! Errors as an operator reads them: with what is below them, where TLS faults hide.

/// An error with the causes below it, in one line.
#[must_use]
pub fn with_causes(error: &dyn std::error::Error) -> String {
    and_causes(error.to_string(), error)
}

/// `text`, and the causes below `of`; what is said already is not said again.
#[must_use]
pub fn and_causes(mut text: String, of: &dyn std::error::Error) -> String {
    let mut cause = of.source();
    while let Some(error) = cause {
        let error_text = error.to_string();
        if !text.contains(&error_text) {
            text.push_str(": ");
            text.push_str(&error_text);
        }
        cause = error.source();
    }
    text
}
