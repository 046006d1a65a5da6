//! KV-cache bytes computed from published model shapes, without allocating anything. This is the data of the memory figure
//! (paper, Figure 4).

use kvcsr_records::MemoryPoint;

/// Suffix of the name of a scheme whose bytes include dictionaries and online atoms.
pub const WITH_DICTIONARIES: &str = " with dictionaries";

const FP16: u64 = 2;
/// Bytes of one nonzero: FP16 coefficient and INT16 index (paper, section 4).
const CODE: u64 = 4;
/// Chunks of a value vector (paper, section 4: `s_n = 2` with half the level of keys).
const VALUE_CHUNKS: u64 = 2;

/// The numbers that determine a model's KV-cache size, and the dictionary sizes that the paper states for the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheShape {
    /// The model's name.
    pub model: String,
    /// Decoder layers, `L`.
    pub layers: u64,
    /// KV heads, `Hkv`.
    pub kv_heads: u64,
    /// Width of a head vector, `D`.
    pub head_dim: u64,
    /// Offline atoms per dictionary, `N`.
    pub offline_atoms: u64,
    /// Sampled and Guard atoms per layer, for keys and for values each. 0 if the paper states none.
    pub online_atoms: u64,
}

impl CacheShape {
    /// Llama2-7B-chat: multi-head attention, N = 8192, 4096 sampled + 8192 Guard atoms (paper, sections 3 and 5).
    pub fn llama2_7b() -> Self {
        Self::new("Llama2-7B", 32, 32, 128, 4096 + 8192)
    }

    /// Llama3-8B-Instruct: grouped-query attention, N = 8192, 1024 sampled + 2048 Guard atoms (paper, section 5).
    pub fn llama3_8b() -> Self {
        Self::new("Llama3-8B", 32, 8, 128, 1024 + 2048)
    }

    /// SmolLM2-135M, which is not in the paper: N = 8192 as for the other models, and no online atoms.
    pub fn smollm2_135m() -> Self {
        Self::new("SmolLM2-135M", 30, 3, 64, 0)
    }

    fn new(model: &str, layers: u64, kv_heads: u64, head_dim: u64, online_atoms: u64) -> Self {
        Self { model: model.to_owned(), layers, kv_heads, head_dim, offline_atoms: 8192, online_atoms }
    }

    /// The uncompressed cache: `2 * L * Hkv * D * T * 2` bytes.
    pub fn fp16_bytes(&self, tokens: u64) -> u64 {
        2 * self.layers * self.kv_heads * self.head_dim * tokens * FP16
    }

    /// Bytes of the codes of CSR-`level`, the paper's nominal size: per head vector `4 * s` bytes for the key and
    /// `4 * 2 * (s / 2)` for the value.
    pub fn code_bytes(&self, level: u64, tokens: u64) -> u64 {
        let key = level * CODE;
        let value = level / VALUE_CHUNKS * VALUE_CHUNKS * CODE;
        self.layers * self.kv_heads * tokens * (key + value)
    }

    /// Offline dictionaries in FP16: per layer one for keys (width `D`) and one for values (width `D / 2`). This is the upper
    /// bound, before layers are merged. It does not depend on the sequence length, and all sequences of a batch share it.
    pub fn offline_bytes(&self) -> u64 {
        self.layers * self.offline_atoms * self.atom_pair_bytes()
    }

    /// Online atoms of one sequence in FP16, keys and values. There are at most as many atoms as the sequence has vectors.
    pub fn online_bytes(&self, tokens: u64) -> u64 {
        let keys = self.online_atoms.min(tokens * self.kv_heads);
        let values = self.online_atoms.min(tokens * self.kv_heads * VALUE_CHUNKS);
        self.layers * (keys * self.head_dim + values * self.head_dim / VALUE_CHUNKS) * FP16
    }

    /// Bytes of codes, offline dictionaries and online atoms.
    pub fn total_bytes(&self, level: u64, tokens: u64) -> u64 {
        self.code_bytes(level, tokens) + self.offline_bytes() + self.online_bytes(tokens)
    }

    fn atom_pair_bytes(&self) -> u64 {
        (self.head_dim + self.head_dim / VALUE_CHUNKS) * FP16
    }

    /// All lines of the figure for this model: FP16, and CSR-`level` for each level, with and without dictionaries.
    pub fn points(&self, levels: &[u64], lengths: &[usize]) -> Vec<MemoryPoint> {
        let point = |scheme: String, tokens: usize, bytes: u64| MemoryPoint {
            model: self.model.clone(),
            scheme,
            tokens,
            bytes,
        };
        let mut points: Vec<MemoryPoint> =
            lengths.iter().map(|&tokens| point("FP16".to_owned(), tokens, self.fp16_bytes(tokens as u64))).collect();
        for &level in levels {
            let name = format!("CSR-{level}");
            points.extend(
                lengths.iter().map(|&tokens| point(name.clone(), tokens, self.code_bytes(level, tokens as u64))),
            );
            let name = format!("{name}{WITH_DICTIONARIES}");
            points.extend(
                lengths.iter().map(|&tokens| point(name.clone(), tokens, self.total_bytes(level, tokens as u64))),
            );
        }
        points
    }
}

/// The paper's Figure 4 range: sequence lengths 1000 to 30000.
pub fn paper_lengths() -> Vec<usize> {
    (1..=30).map(|thousand| thousand * 1000).collect()
}

/// The paper's levels, CSR-16 to CSR-4.
pub const PAPER_LEVELS: [u64; 4] = [16, 8, 6, 4];

/// The data of the memory figure: three models, [`PAPER_LEVELS`], [`paper_lengths`].
pub fn paper_points() -> Vec<MemoryPoint> {
    [CacheShape::llama2_7b(), CacheShape::llama3_8b(), CacheShape::smollm2_135m()]
        .iter()
        .flat_map(|shape| shape.points(&PAPER_LEVELS, &paper_lengths()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama2_at_4096_tokens_matches_hand_computation() {
        let shape = CacheShape::llama2_7b();
        assert_eq!(shape.fp16_bytes(4096), 2_147_483_648);
        // 32 layers x 32 heads x 4096 tokens x (4 x 4 key + 2 x 2 x 4 value) bytes: one sixteenth, the paper's 1 bit.
        assert_eq!(shape.code_bytes(4, 4096), 134_217_728);
        assert_eq!(shape.fp16_bytes(4096) / shape.code_bytes(4, 4096), 16);
        // 32 layers x 12288 atoms x (128 + 64) x 2 bytes.
        assert_eq!(shape.online_bytes(4096), 150_994_944);
        // 32 layers x 8192 atoms x 192 x 2 bytes.
        assert_eq!(shape.offline_bytes(), 100_663_296);
        assert_eq!(shape.total_bytes(4, 4096), 134_217_728 + 150_994_944 + 100_663_296);
    }

    #[test]
    fn grouped_query_attention_divides_by_the_group() {
        assert_eq!(CacheShape::llama2_7b().fp16_bytes(1000), 4 * CacheShape::llama3_8b().fp16_bytes(1000));
        // 30 x 3 x 64 x 2 x 2 bytes per token.
        assert_eq!(CacheShape::smollm2_135m().fp16_bytes(1), 23_040);
        // Heads have half the width of the Llamas' heads, so the same codes are 2 bits per channel, one eighth.
        assert_eq!(CacheShape::smollm2_135m().code_bytes(4, 1), 2_880);
    }

    #[test]
    fn short_prompts_have_fewer_online_atoms() {
        let shape = CacheShape::llama3_8b();
        // 10 tokens x 8 heads: 80 key atoms of width 128 and 160 value atoms of width 64 in each of 32 layers.
        assert_eq!(shape.online_bytes(10), 32 * (80 * 128 + 160 * 64) * 2);
        assert_eq!(shape.online_bytes(4096), 32 * 3072 * 192 * 2);
    }

    #[test]
    fn an_odd_level_gives_values_the_lower_half() {
        // Values take floor(5 / 2) = 2 steps in each of 2 chunks: 16 bytes, and 20 for the key.
        assert_eq!(CacheShape::smollm2_135m().code_bytes(5, 1), 30 * 3 * (20 + 16));
    }
}
