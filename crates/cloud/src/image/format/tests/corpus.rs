//! What the fuzzer (`fuzz/`) begins with and has found is run by every test run.

use super::*;

#[test]
fn the_corpus_is_judged_without_panic() {
    let folder = std::env::var("CARGO_MANIFEST_DIR").unwrap() + "/../../fuzz/corpus/recognise";
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let verdict = check(&bytes);
        // The name says what is expected, where that matters.
        if name.starts_with("hostile-") {
            assert!(verdict.is_err(), "{name}: {verdict:?}");
        } else if let Some((format, _)) = name.strip_prefix("sound-").and_then(|rest| rest.split_once('.')) {
            assert_eq!(verdict.unwrap().format.name(), format, "{name}");
        }
        let _ = check_beginning(&bytes[..bytes.len().min(HEAD)], None);
        seen += 1;
    }
    assert!(seen >= 10, "the corpus is there");
}
