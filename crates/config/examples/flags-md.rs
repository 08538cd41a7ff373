//! Prints `docs/reference/flags.md`, which a test compares with the table.

fn main() {
    print!("{}", config::flags_markdown());
}
