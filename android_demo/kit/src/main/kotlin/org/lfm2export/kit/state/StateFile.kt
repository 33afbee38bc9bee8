package org.lfm2export.kit.state

import java.io.DataInputStream
import java.io.EOFException
import java.io.File
import java.io.IOException
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.security.MessageDigest
import org.json.JSONArray
import org.json.JSONObject
import org.lfm2export.kit.bundle.Json
import org.lfm2export.kit.bundle.Manifest
import org.lfm2export.kit.bundle.Refusal
import org.lfm2export.kit.bundle.hex
import org.lfm2export.kit.chat.Message
import org.lfm2export.kit.chat.PythonJson
import org.lfm2export.kit.model.StateTensors

/** What a state file tells beside the tensors: the tokens that led to the state, and what was said. */
class SavedChat(val tokens: List<Int>, val messages: List<Message>, val tools: List<Any>)

/**
 * A conversation's state as one file, which fits only the bundle it came from: what `lfm2-export chat --save-state` and
 * `lfm2_runner` write and read, byte for byte. The format is that of `lfm2_export/chat/saved_state.py`. A file is
 * distrusted; its checksum is no signature. It holds the conversation in clear text.
 */
class StateFile(private val file: File, private val manifest: Manifest, private val state: StateTensors) {
    private val tensors = state.tensors.sortedBy { it.spec.name }

    /** Write the state and [chat], which led to it. The file appears whole or not at all. Refusal where it cannot be written. */
    fun write(chat: SavedChat) {
        val text = describe(chat)
        val position = chat.tokens.size
        val header = headerOf(text, checksum(text, position), position)
        val bytes = Long.SIZE_BYTES + header.size + tensors.sumOf { StoredTensor(it, position).bytes }
        if (bytes > largest()) refuse("would be $bytes bytes, at most ${largest()} are read back; shorten the messages")
        val partial = File(file.path + ".part")
        try {
            partial.outputStream().use { out ->
                out.write(ByteBuffer.allocate(Long.SIZE_BYTES).order(ByteOrder.LITTLE_ENDIAN).putLong(header.size.toLong()).array())
                out.write(header)
                for (tensor in tensors) out.write(StoredTensor(tensor, position).read())
                out.fd.sync()
            }
            if (!partial.renameTo(file)) refuse("cannot be written")
        } catch (error: IOException) {
            throw Refusal("$file: cannot be written: ${error.message}", error)
        } finally {
            partial.delete()
        }
    }

    /** Set the state to the file's. Refusal, one line that names the file; what the state then holds is not known. */
    fun read(): SavedChat {
        if (!file.isFile) refuse("no such file")
        if (file.length() > largest()) refuse("${file.length()} bytes; a state of this bundle has at most ${largest()}")
        try {
            DataInputStream(file.inputStream().buffered()).use { return read(it) }
        } catch (error: EOFException) {
            throw Refusal("$file: cut off", error)
        } catch (error: IOException) {
            throw Refusal("$file: cannot be read: ${error.message}", error)
        }
    }

    private fun read(input: DataInputStream): SavedChat {
        val length = ByteBuffer.wrap(ByteArray(Long.SIZE_BYTES).also(input::readFully)).order(ByteOrder.LITTLE_ENDIAN).getLong()
        if (length !in 0..minOf(file.length(), LONGEST)) refuse("not a saved state: its header is cut off")
        val json = String(ByteArray(length.toInt()).also(input::readFully)).trimEnd(' ')
        if (!json.endsWith('}')) refuse("not a saved state: something follows its header") // which a parser may not look at
        val header = Json.parse(json, file.path)
        val (sum, text) = header.child(METADATA).text(KEY).let { it.substringBefore(' ') to it.substringAfter(' ') }
        val chat = parse(text)
        val position = chat.tokens.size
        if (header.names.toSet() != tensors.map { it.spec.name }.toSet() + METADATA) refuse("holds other tensors than this bundle's state")
        var begin = 0L
        val digest = digestOf(text)
        for (tensor in tensors) { // in the order in which they are written
            val stored = StoredTensor(tensor, position)
            begin = stored.check(header.child(tensor.spec.name), begin)
            val bytes = ByteArray(stored.bytes.toInt()).also(input::readFully)
            digest.add(stored, bytes)
            stored.write(bytes)
        }
        if (input.read() >= 0) refuse("holds bytes that belong to no tensor")
        if (digest.digest().hex() != sum) refuse("its checksum does not match; the file was altered or damaged")
        return chat
    }

    private fun describe(chat: SavedChat): String {
        val messages = chat.messages.map { JSONObject().put("role", it.role).put("content", it.content) }
        val all = JSONObject().put("version", VERSION).put("artifact", manifest.digest).put("window", manifest.window)
            .put("position", chat.tokens.size).put("tokens", JSONArray(chat.tokens)).put("messages", JSONArray(messages))
            .put("tools", if (chat.tools.isEmpty()) JSONObject.NULL else JSONArray(chat.tools))
        return PythonJson.compact(all)
    }

    private fun parse(text: String): SavedChat {
        val json = Json.parse(text, "$file: $KEY")
        val version = json.whole("version")
        if (version != VERSION.toLong()) json.refuse("version", "$version, this app reads $VERSION")
        if (json.text("artifact") != manifest.digest) refuse("saved from another model; a state fits only the bundle it came from")
        val window = json.whole("window")
        if (window != manifest.window.toLong()) refuse("saved at window $window, this bundle's is ${manifest.window}")
        val tokens = json.wholes("tokens")
        val position = json.whole("position")
        if (position > window || position != tokens.size.toLong()) refuse("position $position with ${tokens.size} tokens in a window of $window")
        tokens.firstOrNull { it !in 0 until manifest.vocabSize }?.let { json.refuse("tokens", "$it is not in the vocabulary") }
        val messages = json.children("messages").map { message ->
            (message.names - "role" - "content").firstOrNull()?.let { message.refuse(it.take(40), "unknown to this app") }
            Message(message.text("role"), message.text("content"))
        }
        val tools = if (json.has("tools")) json.items("tools") else emptyList()
        return SavedChat(tokens.map { it.toInt() }, messages, tools)
    }

    private fun headerOf(text: String, sum: String, position: Int): ByteArray {
        val header = JSONObject().put(METADATA, JSONObject().put(KEY, "$sum $text"))
        var begin = 0L
        for (tensor in tensors) begin = StoredTensor(tensor, position).describe(header, begin)
        val json = PythonJson.compact(header)
        return json.padEnd((json.length + 7) / 8 * 8).toByteArray()
    }

    private fun checksum(text: String, position: Int): String {
        val digest = digestOf(text)
        for (tensor in tensors) StoredTensor(tensor, position).let { digest.add(it, it.read()) }
        return digest.digest().hex()
    }

    private fun digestOf(text: String) = MessageDigest.getInstance("SHA-256").apply { update(PythonJson.ascii(text).toByteArray()) }

    private fun MessageDigest.add(tensor: StoredTensor, bytes: ByteArray) {
        update(PythonJson.ascii(JSONArray(listOf(tensor.name, "float32", JSONArray(tensor.shape)))).toByteArray())
        update(bytes)
    }

    /** With the window full, and room for the conversation: what `saved_state.py` allows. */
    private fun largest(): Long = tensors.sumOf { StoredTensor(it, manifest.window).bytes } + HEADER + HEADER_PER_TOKEN * manifest.window

    private fun refuse(problem: String): Nothing = throw Refusal("$file: $problem")

    private companion object {
        const val VERSION = 1
        const val KEY = "lfm2_export_state"
        const val METADATA = "__metadata__"
        const val LONGEST = 1L shl 30
        const val HEADER = 1L shl 20
        const val HEADER_PER_TOKEN = 256L
    }
}
