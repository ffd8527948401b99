//! The binary: parses the command line and runs one command.

use std::process::ExitCode;

use clap::Parser;
use poolgate::cli::Cli;
use rustix::process::{Resource, Rlimit, setrlimit};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    no_core_dump();
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(poolgate::cli::run(cli)),
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("poolgate: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A dump of our memory would hold every token (reliability CRY-4). A limit of one byte is too little for
/// a file, and Linux hands no dump to a program at it, which at 0 it does (`fs/coredump.c`).
fn no_core_dump() {
    let limit = Rlimit { current: Some(1), maximum: Some(1) };
    // Refused only where it is less already.
    let _ = setrlimit(Resource::Core, limit);
}
