package org.lfm2export.kit.bundle

import java.security.MessageDigest

/** An input of the program. A dimension that may vary per call is [VARIES]. */
data class TensorSpec(val name: String, val type: ElementType, val shape: List<Int>, val written: Boolean) {
    /**
     * Whether every call replaces it whole, as it does what convolutions and sliding attention keep, or only adds columns
     * to it, as to a cache; null for what is no state that this app knows.
     */
    val replaced: Boolean?
        get() = when {
            REPLACED.any(name::startsWith) -> true
            CACHES.any(name::startsWith) -> false
            else -> null
        }

    companion object {
        const val VARIES = -1
        private val REPLACED = listOf("conv_state.", "sliding_key.", "sliding_value.")
        private val CACHES = listOf("key.", "value.")
    }
}

/** What ExecuTorch's Android library can hand to a program, of all that a manifest may name. */
enum class ElementType(val bytes: Int) { INT64(8), FLOAT32(4), FLOAT16(2) }

/**
 * The method that verifies drafts of at most so many tokens. It gives [columns] of every state that calls replace, in this
 * order: for a state `[1, kept, width]` all that it could be made of, `[1, kept + tokens, width]`.
 */
data class Verifier(val method: String, val maxTokens: Int, val columns: List<TensorSpec>)

/** What the app needs of `manifest.json`, the contract of the program beside it. */
data class Manifest(
    val form: String,
    val window: Int,
    val vocabSize: Int,
    val bosId: Int?,
    val method: String,
    val program: String,
    val maxTokens: Int,
    val inputs: List<TensorSpec>,
    val runtimeRequirement: String,
    val files: Map<String, FileEntry>,
    val verifier: Verifier? = null,
) {
    /** The state that the caller owns and the program writes in place; none in the resident form. */
    val state: List<TensorSpec> get() = inputs.drop(2)

    /**
     * SHA-256 over the files that decide the numbers: the program, and weights beside it. State files name it; it is
     * `artifact_digest` of `lfm2_export/chat/saved_state.py`.
     */
    val digest: String
        get() {
            val entries = files.toSortedMap().filterKeys { stem(it) == stem(program) }
            val text = entries.entries.joinToString(", ", "[", "]") { (name, entry) -> "[\"$name\", \"${entry.sha256}\"]" } // names are plain
            return MessageDigest.getInstance("SHA-256").digest(text.toByteArray()).hex()
        }

    private fun stem(name: String): String {
        val last = name.substringAfterLast('/')
        val dot = last.lastIndexOf('.')
        return if (dot in 1 until last.length - 1) last.substring(0, dot) else last
    }

    companion object {
        const val NAME = "manifest.json"
        private const val SCHEMA_VERSION = 1L

        /** Refusal for what is no xnnpack artifact that this app can call. */
        fun parse(text: String): Manifest {
            val json = Json.parse(text, NAME)
            val version = json.whole("schema_version")
            if (version != SCHEMA_VERSION) json.refuse("schema_version", "$version, this app reads $SCHEMA_VERSION")
            if (json.text("target") != "xnnpack") json.refuse("target", "'${json.text("target")}', this app runs xnnpack")
            if (json.text("transport") != "inplace") json.refuse("transport", "expected inplace")
            val methods = json.children("methods")
            val method = methods.firstOrNull() ?: json.refuse("methods", "expected one")
            val config = json.child("source").child("config")
            val vocab = config.count("vocab_size")
            val manifest = Manifest(
                form = json.text("form"),
                window = json.count("window"),
                vocabSize = vocab,
                bosId = if (config.has("bos_token_id")) config.whole("bos_token_id").toInt() else null,
                method = method.text("name"),
                program = method.text("file"),
                maxTokens = method.count("max_tokens"),
                inputs = method.children("inputs").map(::readTensor),
                runtimeRequirement = json.text("runtime_requirement"),
                files = BundleIndex.readFiles(json.child("files")),
            )
            checkOutput(method, vocab)
            checkInputs(manifest, method)
            if (manifest.program !in manifest.files) json.refuse("methods", "file '${manifest.program}' is not listed")
            return manifest.copy(verifier = methods.drop(1).firstOrNull()?.let { readVerifier(it, manifest) })
        }

        /** It takes what the first method takes; what it gives is held against this when it is called. */
        private fun readVerifier(method: Json, manifest: Manifest): Verifier {
            val inputs = method.children("inputs").map(::readTensor)
            if (method.text("file") != manifest.program || inputs.map { it.copy(written = false) } != manifest.inputs.map { it.copy(written = false) }) {
                method.refuse("inputs", "expected those of '${manifest.method}'")
            }
            val states = manifest.state.associateBy { "columns.${it.name}" }
            val columns = method.children("outputs").drop(1).map { output ->
                states[output.text("name")]?.takeIf { it.replaced == true && it.type == ElementType.FLOAT32 }
                    ?: output.refuse("outputs", "'${output.text("name").take(40)}' is of no state that calls replace")
            }
            val missing = manifest.state.firstOrNull { it.replaced == true && it !in columns }
            if (missing != null || columns.distinct() != columns) {
                method.refuse("outputs", "expected the columns of every state that calls replace, of ${missing?.name ?: "each"} too, once")
            }
            return Verifier(method.text("name"), method.count("max_tokens"), columns)
        }

        private fun readTensor(json: Json): TensorSpec {
            val name = json.text("name")
            val shape = json.items("shape").map {
                when {
                    it is String -> TensorSpec.VARIES
                    it is Int && it > 0 -> it
                    else -> json.refuse("shape", "'$it' in the shape of $name")
                }
            }
            return TensorSpec(name, readType(json, name), shape, json.flag("written"))
        }

        private fun readType(json: Json, name: String): ElementType =
            when (val type = json.text("dtype")) {
                "int64" -> ElementType.INT64
                "float32" -> ElementType.FLOAT32
                "float16" -> ElementType.FLOAT16
                "bfloat16" -> json.refuse(
                    "dtype",
                    "$name is bfloat16, which ExecuTorch's Android library has no tensor for; " +
                        "export with --set cache=float32, or with --form resident",
                )
                else -> json.refuse("dtype", "'${type.take(20)}' of $name is unknown to this app")
            }

        private fun checkInputs(manifest: Manifest, method: Json) {
            val inputs = manifest.inputs
            val position = if (manifest.form == "resident") "start_pos" else "position"
            val fit = when (manifest.form) {
                "explicit" -> inputs.size > 2
                "resident" -> inputs.size == 2
                else -> method.refuse("form", "'${manifest.form.take(20)}', expected explicit or resident")
            }
            val first = listOf(
                TensorSpec("tokens", ElementType.INT64, listOf(1, TensorSpec.VARIES), false),
                TensorSpec(position, ElementType.INT64, listOf(1), false),
            )
            if (!fit || inputs.take(2) != first) {
                method.refuse("inputs", "expected tokens [1,T], $position [1] and, in the explicit form, state tensors")
            }
            manifest.state.firstOrNull { !isState(it, manifest.window) }?.let {
                method.refuse("inputs", "'${it.name.take(40)}' ${it.shape} is no state that this app knows, in a window of ${manifest.window}")
            }
        }

        private fun isState(tensor: TensorSpec, window: Int): Boolean {
            val fits = when (tensor.replaced) {
                true -> tensor.shape.size == 3 && tensor.shape[0] == 1
                false -> tensor.shape.size == 4 && tensor.shape[1] == window && tensor.shape[2] == 1
                null -> false
            }
            return fits && tensor.written && tensor.type != ElementType.INT64
        }

        private fun checkOutput(method: Json, vocab: Int) {
            val output = method.children("outputs").singleOrNull() ?: method.refuse("outputs", "expected one")
            if (output.text("dtype") != "float32" || output.items("shape") != listOf<Any>(1, vocab)) {
                method.refuse("outputs", "expected float32 logits [1, $vocab]")
            }
        }
    }
}
