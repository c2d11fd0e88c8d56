//! The fuzzers' corpus, replayed: each file goes through the check that the fuzz target of its
//! folder runs (`fuzz/checks.rs`).

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

#[path = "../../fuzz/checks.rs"]
mod checks;

fn paths(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("the corpus is part of the repository");
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("a file has a name").path()).collect();
    paths.sort();
    paths
}

#[test]
fn the_corpus_holds_nothing_that_breaks_a_claim() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for (name, check) in checks::CHECKS {
        let files = paths(&corpus.join(name));
        assert!(files.len() > 10, "{name}: {} files", files.len());
        for file in files {
            // The last line before a panic is the file that caused it.
            eprintln!("{}", file.display());
            check(&fs::read(file).expect("the corpus can be read"));
        }
    }
    let names = |paths: Vec<PathBuf>, end: &str| -> BTreeSet<String> {
        let name =
            |path: PathBuf| path.file_name().expect("it has one").to_str().map(str::to_owned);
        let names = paths.into_iter().map(|path| name(path).expect("names are ASCII"));
        names.map(|name| name.trim_end_matches(end).to_owned()).collect()
    };
    let checked: BTreeSet<String> =
        checks::CHECKS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names(paths(&corpus), ""), checked, "each folder is replayed");
    let targets = corpus.with_file_name("targets");
    assert_eq!(names(paths(&targets), ".rs"), checked, "each check has its target");
}
