package org.lfm2export.kit

import java.io.ByteArrayOutputStream
import java.io.File
import java.security.MessageDigest
import java.util.zip.CRC32
import java.util.zip.ZipEntry
import java.util.zip.ZipOutputStream
import org.json.JSONArray
import org.json.JSONObject
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.lfm2export.kit.bundle.Bundle
import org.lfm2export.kit.bundle.BundleIndex
import org.lfm2export.kit.bundle.Manifest
import org.lfm2export.kit.bundle.Refusal
import org.lfm2export.kit.bundle.hex
import org.lfm2export.kit.text.ByteAlphabet
import org.lfm2export.kit.text.PreTokenizer

/** The smallest bundle there can be, to be bent in every way. Its vocabulary is the bytes and three special tokens. */
object TinyBundle {
    const val START = 256
    const val TURN = 257
    const val END = 258
    const val VOCAB = 260 // one more than the tokenizer has, as models are padded

    fun tokenizer(): JSONObject {
        val vocab = JSONObject()
        ByteAlphabet.chars.forEachIndexed { id, char -> vocab.put(char.toString(), id) }
        val split = JSONObject().put("type", "Split").put("pattern", JSONObject().put("Regex", PreTokenizer.PATTERN))
            .put("behavior", "Isolated").put("invert", false)
        val bytes = JSONObject().put("type", "ByteLevel").put("add_prefix_space", false).put("use_regex", false)
        val special = mapOf("<|startoftext|>" to START, "<|im_start|>" to TURN, "<|im_end|>" to END)
        return JSONObject()
            .put("added_tokens", JSONArray(special.map { (text, id) -> added(text, id) }))
            .put("normalizer", JSONObject.NULL)
            .put("pre_tokenizer", JSONObject().put("type", "Sequence").put("pretokenizers", JSONArray(listOf(split, bytes))))
            .put("decoder", JSONObject().put("type", "ByteLevel"))
            .put("model", JSONObject().put("type", "BPE").put("vocab", vocab).put("merges", JSONArray()))
    }

    fun added(text: String, id: Int): JSONObject =
        JSONObject().put("content", text).put("id", id).put("single_word", false).put("lstrip", false).put("rstrip", false)
            .put("normalized", false).put("special", true)

    fun tensor(name: String, type: String, vararg shape: Any, written: Boolean = true): JSONObject =
        JSONObject().put("name", name).put("dtype", type).put("shape", JSONArray(shape.toList())).put("written", written)

    fun manifest(form: String = "explicit"): JSONObject {
        val position = if (form == "explicit") "position" else "start_pos"
        val inputs = mutableListOf(tensor("tokens", "int64", 1, "T", written = false), tensor(position, "int64", 1, written = false))
        if (form == "explicit") {
            inputs += tensor("conv_state.0", "float32", 1, 2, 3)
            inputs += tensor("key.1", "float16", 2, 64, 1, 4)
            inputs += tensor("value.1", "float16", 2, 64, 1, 4)
        }
        val method = JSONObject().put("name", "forward").put("file", "model.pte").put("max_tokens", 16)
            .put("inputs", JSONArray(inputs)).put("outputs", JSONArray(listOf(tensor("logits", "float32", 1, VOCAB, written = false))))
        val methods = listOfNotNull(method, if (form == "explicit") verify(inputs) else null)
        return JSONObject().put("schema_version", 1).put("target", "xnnpack").put("form", form).put("transport", "inplace")
            .put("window", 64).put("runtime_requirement", "executorch==1.5.1").put("methods", JSONArray(methods))
            .put("source", JSONObject().put("config", JSONObject().put("vocab_size", VOCAB).put("bos_token_id", START)))
            .put("files", JSONObject().put("model.pte", entry(PROGRAM)))
    }

    /** With two states of sliding attention more, whose columns `verify` gives before the convolution's, the value's first. */
    fun slidingManifest(): JSONObject {
        val manifest = manifest()
        for (at in 0..1) {
            val inputs = manifest.getJSONArray("methods").getJSONObject(at).getJSONArray("inputs")
            for (name in listOf("sliding_key.2", "sliding_value.2")) inputs.put(tensor(name, "float32", 1, 4, 2, written = at == 0))
        }
        val outputs = manifest.getJSONArray("methods").getJSONObject(1).getJSONArray("outputs")
        val conv = outputs.remove(1)
        for (name in listOf("sliding_value.2", "sliding_key.2")) outputs.put(tensor("columns.$name", "float32", 1, "T+4", 2, written = false))
        outputs.put(conv)
        return manifest
    }

    private fun verify(inputs: List<JSONObject>): JSONObject {
        val columns = tensor("columns.conv_state.0", "float32", 1, "T+2", 3, written = false)
        val outputs = listOf(tensor("logits", "float32", 1, "T", VOCAB, written = false), columns)
        val given = inputs.map { input -> JSONObject(input.toString()).also { if ("conv" in it.getString("name")) it.put("written", false) } }
        return JSONObject().put("name", "verify").put("file", "model.pte").put("max_tokens", 8)
            .put("inputs", JSONArray(given)).put("outputs", JSONArray(outputs))
    }

    fun golden(): JSONObject {
        val step = JSONObject().put("top", JSONArray(listOf(97, END))).put("logits", JSONArray(listOf(2.0, 1.0))).put("scale", 2.0)
        val messages = JSONArray(listOf(JSONObject().put("role", "user").put("content", "a")))
        val prompt = JSONArray(listOf(START, TURN) + "user\na".map { it.code } + listOf(END, 10, TURN) + "assistant\n".map { it.code })
        val case = JSONObject().put("messages", messages).put("prompt", prompt).put("reply", "a").put("steps", JSONArray(listOf(step)))
        return JSONObject().put("runtime", "executorch 1.5.1").put("max_error", 0.01).put("cases", JSONArray(listOf(case)))
    }

    private val PROGRAM = ByteArray(1000) { (it * 7).toByte() }

    /** Contents of every file but `bundle.json`. */
    fun files(manifest: JSONObject = manifest()): MutableMap<String, ByteArray> =
        linkedMapOf(
            "manifest.json" to manifest.toString().toByteArray(),
            "model.pte" to PROGRAM,
            "tokenizer.json" to tokenizer().toString().toByteArray(),
            "licences/LICENSE.txt" to "…".toByteArray(),
            "golden.json" to golden().toString().toByteArray(),
        )

    fun index(files: Map<String, ByteArray>, form: String = "explicit"): JSONObject {
        val entries = JSONObject()
        for ((name, content) in files) entries.put(name, entry(content))
        return JSONObject().put("schema_version", 1).put("kind", "android").put("source", "tiny").put("random_weights", false)
            .put("recipe", "xnnpack-int8").put("target", "xnnpack").put("form", form).put("window", 64)
            .put("runtime_requirement", "executorch==1.5.1").put("eos_ids", JSONArray(listOf(END))).put("files", entries)
    }

    fun entry(content: ByteArray): JSONObject =
        JSONObject().put("size", content.size).put("sha256", MessageDigest.getInstance("SHA-256").digest(content).hex())

    /** An archive of these entries, stored, in this order; a name may come twice. */
    fun archive(entries: List<Pair<String, ByteArray>>, method: Int = ZipEntry.STORED): ByteArray {
        val out = ByteArrayOutputStream()
        // a writer of its own for each entry: Java's refuses to write a name twice
        for ((name, content) in entries) out.write(localEntry(name, content, method))
        return out.toByteArray()
    }

    private fun localEntry(name: String, content: ByteArray, method: Int): ByteArray {
        val out = ByteArrayOutputStream()
        val zip = ZipOutputStream(out)
        val entry = ZipEntry(name)
        entry.method = method
        if (method == ZipEntry.STORED) {
            entry.size = content.size.toLong()
            entry.crc = CRC32().apply { update(content) }.value
        }
        zip.putNextEntry(entry)
        zip.write(content)
        zip.closeEntry()
        zip.flush()
        return out.toByteArray() // without the directory at the end, which a reader from front to back does not need
    }

    /** A sound archive, unless [bend] changes the files or the index. */
    fun archive(form: String = "explicit", bend: (files: MutableMap<String, ByteArray>, index: JSONObject) -> Unit = { _, _ -> }): ByteArray {
        val files = files(manifest(form))
        val index = index(files, form)
        bend(files, index)
        return archive(listOf(BundleIndex.NAME to index.toString().toByteArray()) + files.toList())
    }

    /** An unpacked bundle in a folder. */
    fun folder(root: File, manifest: JSONObject = manifest(), form: String = "explicit", bend: (JSONObject) -> Unit = {}): File {
        val files = files(manifest)
        val index = index(files, form).also(bend)
        for ((name, content) in files + (BundleIndex.NAME to index.toString().toByteArray())) {
            File(root, name).apply { parentFile?.mkdirs() }.writeBytes(content)
        }
        return root
    }

    fun parsedManifest(form: String = "explicit"): Manifest = Manifest.parse(manifest(form).toString())

    fun open(folder: File): Bundle = Bundle.open(folder, "1.5.1")
}

/** Fails unless [action] is refused, in one line, for a reason that names [fragment]. */
fun assertRefused(fragment: String, action: () -> Unit) {
    val refusal = assertThrows(Refusal::class.java) { action() }
    val message = refusal.message.orEmpty()
    assertTrue("'$message' should mention '$fragment'", fragment in message)
    assertTrue("more than one line: $message", '\n' !in message)
}
