//! The command-line tool, a module of the library.
#![deny(unsafe_code)]

fn main() -> std::process::ExitCode {
    cntlora::cli::main()
}
