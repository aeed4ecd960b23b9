//! Exit codes and error printing, nothing else.

fn main() {}
