/* config.json in and out, and the canonical tensor table. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/json_util.h"
#include "common/model_config.h"
#include "common/rng.h"

#define LLAMA                                                                                      \
    "\"model_type\":\"llama\",\"vocab_size\":128,\"hidden_size\":64,\"intermediate_size\":96,"     \
    "\"num_hidden_layers\":2,\"num_attention_heads\":4,\"num_key_value_heads\":2,"                 \
    "\"max_position_embeddings\":512,\"rms_norm_eps\":1e-05"
#define QWEN2                                                                                      \
    "\"model_type\":\"qwen2\",\"vocab_size\":128,\"hidden_size\":64,\"intermediate_size\":96,"     \
    "\"num_hidden_layers\":4,\"num_attention_heads\":4,\"num_key_value_heads\":2"
#define GEMMA                                                                                      \
    "\"model_type\":\"gemma3_text\",\"vocab_size\":128,\"hidden_size\":64,"                        \
    "\"intermediate_size\":96,\"num_hidden_layers\":7,\"num_attention_heads\":4,"                  \
    "\"num_key_value_heads\":1,\"head_dim\":32,\"sliding_window\":512"

static ifl_status parse(ifl_model_config *c, const char *text, ifl_error *err) {
    memset(err, 0, sizeof *err);
    return ifl_model_config_from_json(c, text, strlen(text), err);
}

static ifl_model_config parse_ok(const char *text) {
    ifl_model_config c;
    ifl_error err;
    if (parse(&c, text, &err) != IFL_OK) fail_msg("%s\n%s", err.text, text);
    return c;
}

static void expect_refused(const char *text, ifl_status want, const char *words) {
    ifl_model_config c;
    ifl_error err;
    ifl_status got = parse(&c, text, &err);
    if (got != want || !strstr(err.text, words))
        fail_msg("got status %d \"%s\", wanted %d with \"%s\"\n%s", (int)got, err.text, (int)want,
                 words, text);
    /* Without a place for the text the status must be the same. */
    assert_int_equal(ifl_model_config_from_json(&c, text, strlen(text), NULL), want);
}

static void test_llama3_fields_and_rope_scaling(void **state) {
    (void)state;
    ifl_model_config c = parse_ok("{" LLAMA ",\"rope_theta\":500000,\"eos_token_id\":[5,7,5],"
                                  "\"bos_token_id\":3,\"rope_scaling\":{\"rope_type\":\"llama3\","
                                  "\"factor\":8,\"low_freq_factor\":1.0,\"high_freq_factor\":4,"
                                  "\"original_max_position_embeddings\":64}}");
    assert_int_equal(c.family, IFL_FAMILY_LLAMA);
    assert_int_equal(c.head_dim, 16);
    assert_int_equal(c.n_kv_heads, 2);
    assert_int_equal(c.rope.kind, IFL_ROPE_LLAMA3);
    assert_true(c.rope.theta == 500000.0 && c.rope.factor == 8.0 && c.rope.high_freq_factor == 4.0);
    assert_true(c.rope.original_positions == 64.0 && c.rope.attention_factor == 1.0);
    assert_memory_equal(&c.rope, &c.rope_local, sizeof c.rope);
    assert_true(c.norm_eps == 1e-5f && c.attention_scale == 0.25f && c.embed_scale == 1.0f);
    assert_int_equal(c.n_eos, 2);
    assert_int_equal(c.eos_ids[1], 7);
    assert_int_equal(c.bos_id, 3);
    assert_false(c.tied_head || c.qkv_bias || c.qk_norm || c.norm_plus_one || c.sandwich_norms);
}

static void test_rope_parameters_of_transformers_5_equal_the_older_keys(void **state) {
    (void)state;
    ifl_model_config a = parse_ok("{" LLAMA ",\"rope_parameters\":{\"rope_type\":\"linear\","
                                  "\"factor\":2.0,\"rope_theta\":20000.0}}");
    ifl_model_config b = parse_ok("{" LLAMA ",\"rope_theta\":20000,"
                                  "\"rope_scaling\":{\"type\":\"linear\",\"factor\":2}}");
    assert_memory_equal(&a, &b, sizeof a);
    assert_int_equal(a.rope.kind, IFL_ROPE_LINEAR);
    a = parse_ok("{" GEMMA ",\"rope_parameters\":{\"full_attention\":{\"rope_type\":\"linear\","
                 "\"factor\":8.0,\"rope_theta\":1000000.0},\"sliding_attention\":"
                 "{\"rope_type\":\"default\",\"rope_theta\":12000.0}}}");
    b = parse_ok("{" GEMMA ",\"rope_theta\":1000000,\"rope_local_base_freq\":12000,"
                 "\"rope_scaling\":{\"rope_type\":\"linear\",\"factor\":8}}");
    assert_memory_equal(&a, &b, sizeof a);
    assert_true(a.rope_local.theta == 12000.0 && a.rope_local.kind == IFL_ROPE_DEFAULT);
}

static void test_yarn_gets_its_defaults(void **state) {
    (void)state;
    ifl_model_config c =
        parse_ok("{" QWEN2 ",\"rope_theta\":1000000.0,\"rope_scaling\":{\"type\":"
                 "\"yarn\",\"factor\":4.0,\"original_max_position_embeddings\":8192}}");
    assert_int_equal(c.rope.kind, IFL_ROPE_YARN);
    assert_true(c.rope.beta_fast == 32.0 && c.rope.beta_slow == 1.0);
    assert_true(c.rope.attention_factor > 1.13862 && c.rope.attention_factor < 1.13863);
}

static void test_gemma_defaults_and_layer_pattern(void **state) {
    (void)state;
    ifl_model_config c = parse_ok("{" GEMMA "}");
    for (int i = 0; i < 7; i++)
        assert_int_equal(c.layer_is_sliding[i], i != 5);
    assert_true(c.rope.theta == 1e6 && c.rope_local.theta == 1e4);
    assert_true(c.embed_scale == 8.0f && c.attention_scale == 0.0625f);
    assert_true(c.tied_head && c.qk_norm && c.norm_plus_one && c.sandwich_norms);
    assert_int_equal(c.activation, IFL_ACT_GELU_TANH);
    assert_int_equal(c.eos_ids[0], 1);
    assert_int_equal(c.bos_id, 2);
    c = parse_ok("{" GEMMA ",\"sliding_window_pattern\":2,\"query_pre_attn_scalar\":64}");
    assert_true(c.layer_is_sliding[0] == 1 && c.layer_is_sliding[1] == 0);
    assert_true(c.attention_scale == 0.125f);
    c = parse_ok("{" GEMMA ",\"layer_types\":[\"full_attention\",\"sliding_attention\","
                 "\"full_attention\",\"full_attention\",\"full_attention\",\"full_attention\","
                 "\"full_attention\"]}");
    assert_true(c.layer_is_sliding[0] == 0 && c.layer_is_sliding[1] == 1);
}

static void test_gemma_multimodal_reads_its_text_config(void **state) {
    (void)state;
    ifl_model_config c =
        parse_ok("{\"model_type\":\"gemma3\",\"eos_token_id\":[1,106],\"vision_config\":{},"
                 "\"text_config\":{\"hidden_size\":2560,\"intermediate_size\":10240,"
                 "\"num_hidden_layers\":34,\"sliding_window\":1024,\"rope_scaling\":"
                 "{\"factor\":8.0,\"rope_type\":\"linear\"}}}");
    assert_int_equal(c.vocab_size, 262208);
    assert_int_equal(c.n_heads, 8);
    assert_int_equal(c.n_eos, 2);
    assert_int_equal(c.eos_ids[1], 106);
    assert_int_equal(c.rope.kind, IFL_ROPE_LINEAR);
    expect_refused("{\"model_type\":\"gemma3\"}", IFL_FORMAT, "text_config");
}

static void test_qwen_sliding_window_needs_its_switch(void **state) {
    (void)state;
    ifl_model_config c = parse_ok("{" QWEN2 ",\"sliding_window\":64,\"max_window_layers\":2}");
    assert_int_equal(c.sliding_window, 0);
    assert_null(memchr(c.layer_is_sliding, 1, sizeof c.layer_is_sliding));
    c = parse_ok("{" QWEN2 ",\"sliding_window\":64,\"max_window_layers\":2,"
                 "\"use_sliding_window\":true}");
    assert_int_equal(c.sliding_window, 64);
    assert_true(c.layer_is_sliding[1] == 0 && c.layer_is_sliding[2] == 1);
}

static void test_unsupported_fields_are_named(void **state) {
    (void)state;
    expect_refused("{" LLAMA ",\"attention_bias\":true}", IFL_UNSUPPORTED, "attention_bias");
    expect_refused("{" LLAMA ",\"mlp_bias\":true}", IFL_UNSUPPORTED, "mlp_bias");
    expect_refused("{" LLAMA ",\"hidden_act\":\"relu\"}", IFL_UNSUPPORTED, "hidden_act");
    expect_refused("{" LLAMA ",\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":2.0}}",
                   IFL_UNSUPPORTED, "dynamic");
    expect_refused("{" LLAMA ",\"quantization_config\":{}}", IFL_UNSUPPORTED,
                   "quantization_config");
    expect_refused("{" LLAMA ",\"rope_parameters\":{\"rope_type\":\"default\","
                   "\"partial_rotary_factor\":0.5}}",
                   IFL_UNSUPPORTED, "partial_rotary_factor");
    expect_refused("{" GEMMA ",\"attn_logit_softcapping\":50.0}", IFL_UNSUPPORTED,
                   "attn_logit_softcapping");
    expect_refused("{" GEMMA ",\"use_bidirectional_attention\":true}", IFL_UNSUPPORTED,
                   "use_bidirectional_attention");
    expect_refused("{\"model_type\":\"mamba\"}", IFL_UNSUPPORTED, "mamba");
}

static void test_malformed_fields_are_named(void **state) {
    (void)state;
    expect_refused("", IFL_FORMAT, "JSON");
    expect_refused("[1]", IFL_FORMAT, "object");
    expect_refused("{\"a\":1,\"a\":2}", IFL_FORMAT, "duplicate");
    expect_refused("{}", IFL_FORMAT, "model_type");
    expect_refused("{\"model_type\":\"llama\"}", IFL_FORMAT, "vocab_size");
    expect_refused("{" LLAMA ",\"head_dim\":15}", IFL_LIMIT, "head_dim");
    expect_refused("{" LLAMA ",\"head_dim\":\"x\"}", IFL_FORMAT, "head_dim");
    expect_refused("{" LLAMA ",\"eos_token_id\":128}", IFL_LIMIT, "eos_token_id");
    expect_refused("{" LLAMA ",\"eos_token_id\":[1,-1]}", IFL_LIMIT, "eos_token_id");
    expect_refused("{" LLAMA ",\"rope_theta\":-1}", IFL_LIMIT, "rope_theta");
    expect_refused("{" LLAMA ",\"rope_scaling\":{\"type\":\"linear\"}}", IFL_FORMAT, "factor");
    expect_refused("{" GEMMA ",\"layer_types\":[\"full_attention\"]}", IFL_FORMAT, "layer_types");
    expect_refused("{" GEMMA ",\"query_pre_attn_scalar\":2.5}", IFL_UNSUPPORTED, "attention_scale");
    expect_refused("{\"model_type\":\"llama\",\"vocab_size\":99999999}", IFL_LIMIT, "vocab_size");
}

static void test_every_family_round_trips_through_json(void **state) {
    (void)state;
    static const char *const texts[] = {
        "{" LLAMA ",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":1,"
        "\"high_freq_factor\":4,\"original_max_position_embeddings\":64},\"eos_token_id\":[5,6]}",
        "{" QWEN2 ",\"tie_word_embeddings\":true,\"use_sliding_window\":true,\"sliding_window\":9,"
        "\"max_window_layers\":1,\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4,"
        "\"original_max_position_embeddings\":8192,\"attention_factor\":1.25}}",
        "{\"model_type\":\"qwen3\",\"vocab_size\":128,\"hidden_size\":64,\"intermediate_size\":96,"
        "\"num_hidden_layers\":4,\"num_attention_heads\":4,\"num_key_value_heads\":2}",
        "{" GEMMA ",\"final_logit_softcapping\":30.0,\"query_pre_attn_scalar\":168}",
        "{" GEMMA ",\"rope_parameters\":{\"full_attention\":{\"rope_type\":\"default\"},"
        "\"sliding_attention\":{\"rope_type\":\"linear\",\"factor\":3.0}}}",
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        ifl_model_config a = parse_ok(texts[i]);
        char *json = NULL;
        assert_int_equal(ifl_model_config_to_json(&a, &json, NULL), IFL_OK);
        ifl_model_config b = parse_ok(json);
        if (memcmp(&a, &b, sizeof a) != 0) fail_msg("changed by the round trip: %s", json);
        free(json);
    }
}

static void test_check_names_the_wrong_field(void **state) {
    (void)state;
    ifl_model_config good = parse_ok("{" GEMMA "}"), bad;
    ifl_error err = {0};
#define WRONG(field, value, word)                                                                  \
    bad = good;                                                                                    \
    bad.field = value;                                                                             \
    assert_int_not_equal(ifl_model_config_check(&bad, &err), IFL_OK);                              \
    assert_non_null(strstr(err.text, word))
    assert_int_equal(ifl_model_config_check(&good, &err), IFL_OK);
    WRONG(vocab_size, 0, "vocab_size");
    WRONG(n_layers, IFL_LAYERS_MAX + 1, "n_layers");
    WRONG(n_kv_heads, 3, "n_kv_heads");
    WRONG(head_dim, 7, "head_dim");
    WRONG(norm_eps, 0.0f, "norm_eps");
    WRONG(norm_eps, (float)__builtin_nan(""), "norm_eps");
    WRONG(sliding_window, 0, "sliding_window");
    WRONG(layer_is_sliding[7], 1, "layer_is_sliding");
    WRONG(qk_norm, false, "qk_norm");
    WRONG(embed_scale, 1.0f, "embed_scale");
    WRONG(rope.theta, 0.0, "rope.theta");
    WRONG(bos_id, 128, "bos_id");
    WRONG(n_eos, IFL_STOP_IDS_MAX + 1, "n_eos");
#undef WRONG
}

static void test_tensor_table_is_in_canonical_order(void **state) {
    (void)state;
    static const char *const want[] = {
        "model.embed_tokens.weight",
        "model.layers.0.input_layernorm.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.0.self_attn.k_proj.weight",
        "model.layers.0.self_attn.k_proj.bias",
        "model.layers.0.self_attn.v_proj.weight",
        "model.layers.0.self_attn.v_proj.bias",
        "model.layers.0.self_attn.o_proj.weight",
        "model.layers.0.post_attention_layernorm.weight",
        "model.layers.0.mlp.gate_proj.weight",
        "model.layers.0.mlp.up_proj.weight",
        "model.layers.0.mlp.down_proj.weight",
    };
    ifl_model_config c = parse_ok("{" QWEN2 "}");
    int32_t n = ifl_model_config_tensors(&c, NULL);
    assert_int_equal(n, 1 + 4 * 12 + 2);
    ifl_tensor_spec *specs = calloc((size_t)n, sizeof *specs);
    assert_non_null(specs);
    assert_int_equal(ifl_model_config_tensors(&c, specs), n);
    for (size_t i = 0; i < sizeof want / sizeof *want; i++)
        assert_string_equal(specs[i].name, want[i]);
    assert_string_equal(specs[n - 2].name, "model.norm.weight");
    assert_string_equal(specs[n - 1].name, "lm_head.weight");
    assert_true(specs[4].rows == 32 && specs[4].cols == 64 && specs[4].is_matrix);
    assert_true(specs[5].rows == 1 && specs[5].cols == 32 && !specs[5].is_matrix);
    free(specs);

    c = parse_ok("{" GEMMA "}");
    assert_int_equal(ifl_model_config_tensors(&c, NULL), 1 + 7 * 13 + 1); /* tied: no head */
}

static void test_flipped_bits_never_crash(void **state) {
    (void)state;
    const char *text = "{" GEMMA ",\"rope_parameters\":{\"full_attention\":{\"rope_type\":\"yarn\","
                       "\"factor\":8.0},\"sliding_attention\":{\"rope_theta\":1e4}}}";
    size_t n = strlen(text);
    char copy[1024];
    ifl_rng_key key = {.seed = 1, .stream = 1, .purpose = IFL_RNG_TEST};
    int n_refused = 0;
    for (uint64_t i = 0; i < 5000; i++) {
        memcpy(copy, text, n);
        uint64_t bit = ifl_rng_below(&key, i, 0, n * 8);
        copy[bit / 8] ^= (char)(1 << (bit % 8));
        ifl_model_config c;
        if (ifl_model_config_from_json(&c, copy, n, NULL) != IFL_OK)
            n_refused++;
        else
            assert_int_equal(ifl_model_config_check(&c, NULL), IFL_OK);
    }
    assert_true(n_refused > 1000);
    for (size_t cut = 0; cut < n; cut++) {
        ifl_model_config c;
        assert_int_not_equal(ifl_model_config_from_json(&c, text, cut, NULL), IFL_OK);
    }
}

static void test_json_that_would_cost_gigabytes_is_refused(void **state) {
    (void)state;
    size_t n = IFL_JSON_VALUES_MAX + 2;
    char *text = malloc(n);
    assert_non_null(text);
    memset(text, '[', n);
    ifl_error err = {0};
    json_t *root = NULL;
    assert_int_equal(ifl_json_parse_object(&root, text, n, 1 << 30, "x", &err), IFL_LIMIT);
    assert_non_null(strstr(err.text, "values"));
    /* Below that limit nesting has its own: no deep recursion. */
    assert_int_equal(ifl_json_parse_object(&root, text, 100000, 1 << 30, "x", &err), IFL_FORMAT);
    assert_int_equal(ifl_json_parse_object(&root, "{}", 2, 1, "x", &err), IFL_LIMIT);
    free(text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_llama3_fields_and_rope_scaling),
        cmocka_unit_test(test_rope_parameters_of_transformers_5_equal_the_older_keys),
        cmocka_unit_test(test_yarn_gets_its_defaults),
        cmocka_unit_test(test_gemma_defaults_and_layer_pattern),
        cmocka_unit_test(test_gemma_multimodal_reads_its_text_config),
        cmocka_unit_test(test_qwen_sliding_window_needs_its_switch),
        cmocka_unit_test(test_unsupported_fields_are_named),
        cmocka_unit_test(test_malformed_fields_are_named),
        cmocka_unit_test(test_every_family_round_trips_through_json),
        cmocka_unit_test(test_check_names_the_wrong_field),
        cmocka_unit_test(test_tensor_table_is_in_canonical_order),
        cmocka_unit_test(test_flipped_bits_never_crash),
        cmocka_unit_test(test_json_that_would_cost_gigabytes_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
