// The table of one instruction set; the last include of isa_*.cpp.
static Isa make_table(const char* name) {
    Isa t = {.name = name,
             .panel = kNR,
             .gemm_scratch = gemm_scratch,
             .gemm = gemm,
             .tokens_scratch = tokens_scratch,
             .gemm_tokens = gemm_tokens,
             .pack_weight_panel = pack_weight_panel,
             .unpack_weight_row = unpack_weight_row,
             .gemm_scratch_bf16 = nullptr,
             .gemm_bf16 = nullptr,
             .tokens_scratch_bf16 = nullptr,
             .gemm_tokens_bf16 = nullptr,
             .pairs_of = nullptr,
             .pack_weight_panel_bf16 = nullptr,
             .pack_weight_turned_bf16 = nullptr,
             .unpack_weight_row_bf16 = nullptr,
             .head_scratch_bf16 = nullptr,
             .head_bf16 = nullptr,
             .rmsnorm = rmsnorm,
             .add_rmsnorm = add_rmsnorm,
             .normalize = normalize,
             .rmsnorm_backward = rmsnorm_backward,
             .rope = rope,
             .swiglu = swiglu,
             .swiglu_backward = swiglu_backward,
             .dropout = dropout,
             .scale_add = scale_add,
             .head_scratch = head_scratch<false>,
             .head_rows = head_rows,
             .head = head<false>,
             .attention_block = attention_block,
             .attention_packed = attention_packed,
             .attention_scratch = attention_scratch,
             .attention_pack = attention_pack,
             .attention = attention,
             .attention_backward = attention_backward,
             .attention_block_bf16 = nullptr,
             .attention_packed_bf16 = nullptr,
             .attention_scratch_bf16 = nullptr,
             .attention_pack_bf16 = nullptr,
             .attention_bf16 = nullptr,
             .attention_backward_bf16 = nullptr,
             .adamw = adamw,
             .squared_norm = squared_norm,
             .decode_attention = decode_attention};
#if defined(__AVX512BF16__)
    t.gemm_scratch_bf16 = gemm_scratch_bf16;
    t.gemm_bf16 = gemm_bf16;
    t.tokens_scratch_bf16 = tokens_scratch_bf16;
    t.gemm_tokens_bf16 = gemm_tokens_bf16;
    t.pairs_of = pairs_of;
    t.pack_weight_panel_bf16 = pack_weight_panel_bf16;
    t.pack_weight_turned_bf16 = pack_weight_turned_bf16;
    t.unpack_weight_row_bf16 = unpack_weight_row_bf16;
    t.head_scratch_bf16 = head_scratch<true>;
    t.head_bf16 = head<true>;
    t.attention_block_bf16 = [] { return kBQ16; };
    t.attention_packed_bf16 = attention_packed_bf16;
    t.attention_scratch_bf16 = attention_scratch_bf16;
    t.attention_pack_bf16 = attention_pack_bf16;
    t.attention_bf16 = attention_bf16;
    t.attention_backward_bf16 = attention_backward_bf16;
#endif
    return t;
}
