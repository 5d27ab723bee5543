//! Hints about ranks for the programs that use an adapter.

/// The limits on ranks that vLLM takes (`MaxLoRARanks` in `config/lora.py`).
const VLLM: [usize; 9] = [1, 8, 16, 32, 64, 128, 256, 320, 512];

/// The limit on ranks that a server needs for adapters of this rank.
pub(crate) fn server(largest: usize) -> String {
    let all = format!(
        "A server with a limit on ranks, such as --max-lora-rank of vLLM, has to allow rank {largest}"
    );
    match VLLM.into_iter().find(|limit| *limit >= largest) {
        Some(limit) if limit == largest => format!("{all}."),
        Some(limit) => format!("{all}: the next limit that vLLM takes is {limit}."),
        None => format!("{all}, but vLLM takes at most {}.", VLLM[VLLM.len() - 1]),
    }
}

/// The option for programs that take one rank, for an adapter with different ranks.
pub(crate) const ONE_RANK: &str =
    "llama.cpp and mlx-lm take one rank and one scale for all layers: for them, give --uniform-rank.";

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn servers_take_some_limits_only() {
        expect![[r#"
            A server with a limit on ranks, such as --max-lora-rank of vLLM, has to allow rank 11: the next limit that vLLM takes is 16.
            A server with a limit on ranks, such as --max-lora-rank of vLLM, has to allow rank 16.
            A server with a limit on ranks, such as --max-lora-rank of vLLM, has to allow rank 257: the next limit that vLLM takes is 320.
            A server with a limit on ranks, such as --max-lora-rank of vLLM, has to allow rank 600, but vLLM takes at most 512.
        "#]]
        .assert_eq(&[11, 16, 257, 600].map(|rank| server(rank) + "\n").concat());
    }
}
