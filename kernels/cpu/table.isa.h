// The table of one instruction set; the last include of isa_*.cpp.

// What is the same code for every T.
template <class T>
static Ops<T> shared_ops() {
    Ops<T> t{};
    t.rmsnorm = rmsnorm<T>;
    t.add_rmsnorm = add_rmsnorm<T>;
    t.normalize = normalize<T>;
    t.rmsnorm_backward = rmsnorm_backward<T>;
    t.rope = rope<T>;
    t.swiglu = swiglu<T>;
    t.swiglu_backward = swiglu_backward<T>;
    t.dropout = dropout<T>;
    t.head_end = head_end<T>;
    t.decode_attention = decode_attention<T>;
    t.combine = combine<T, T>;
    t.combine_full = combine<float, T>;
    return t;
}

static Ops<float> fp32_ops() {
    Ops<float> t = shared_ops<float>();
    t.units = [](int K) { return K; };
    t.gemm_scratch = gemm_scratch;
    t.gemm = t.gemm_full = gemm;
    t.tokens_scratch = tokens_scratch;
    t.gemm_tokens = gemm_tokens;
    t.pack_weight_panel = pack_weight_panel;
    t.unpack_weight_row = unpack_weight_row<float>;
    t.head_scratch = head_scratch;
    t.head_rows = head_rows;
    t.head = head;
    t.attention_block = t.attention_backward_block = attention_block;
    t.attention_packed = attention_packed;
    t.attention_scratch = attention_scratch;
    t.attention_pack = attention_pack;
    t.attention = attention;
    t.attention_backward = attention_backward;
    return t;
}

#if defined(__AVX512BF16__)
static Ops<bf16> bf16_ops() {
    Ops<bf16> t = shared_ops<bf16>();
    t.units = pairs_of;
    t.gemm_scratch = gemm_scratch_bf16;
    t.gemm = gemm_bf16<bf16>;
    t.gemm_full = gemm_bf16<float>;
    t.tokens_scratch = tokens_scratch_bf16;
    t.gemm_tokens = gemm_tokens_bf16;
    t.pack_weight_panel = pack_weight_panel_bf16;
    t.pack_weight_turned = pack_weight_turned_bf16;
    t.unpack_weight_row = unpack_weight_row_bf16<bf16>;
    t.head_scratch = head_scratch_bf16;
    t.head_rows = head_rows_bf16;
    t.head = head_bf16;
    t.attention_block = [] { return kBQ16; };
    t.attention_backward_block = [] { return 0x7fffffff; };
    t.attention_packed = attention_packed_bf16;
    t.attention_scratch = attention_scratch_bf16;
    t.attention_pack = attention_pack_bf16;
    t.attention = attention_bf16;
    t.attention_backward = attention_backward_bf16;
    return t;
}
#else
static Ops<bf16> bf16_ops() { return {}; }
#endif

static Isa make_table(const char* name) { return {name, kNR, kMC, kKC, fp32_ops(), bf16_ops(), adamw, squared_norm}; }
