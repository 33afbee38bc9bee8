package org.lfm2export.kit.bundle

/** Size in bytes and SHA-256, in lower-case hex, of a file that somebody vouches for. */
data class FileEntry(val size: Long, val sha256: String)

/** `bundle.json`: what the bundle is for, and every other file in it. Contract: `lfm2-export bundle --for android`. */
data class BundleIndex(
    val source: String,
    val randomWeights: Boolean,
    val form: String,
    val window: Int,
    val runtimeRequirement: String,
    val eosIds: List<Int>,
    val files: Map<String, FileEntry>,
) {
    val totalSize: Long get() = files.values.sumOf { it.size }

    companion object {
        const val NAME = "bundle.json"
        const val LARGEST = 16L shl 20
        private const val SCHEMA_VERSION = 1L
        private const val MOST_FILES = 1000
        private const val LARGEST_FILE = 64L shl 30

        /** Refusal for another schema, kind or target, and for file names that could leave a folder. */
        fun parse(text: String): BundleIndex {
            val json = Json.parse(text, NAME)
            val version = json.whole("schema_version")
            if (version != SCHEMA_VERSION) {
                json.refuse("schema_version", "$version, this app reads $SCHEMA_VERSION; use the app that goes with it")
            }
            requireValue(json, "kind", "android")
            requireValue(json, "target", "xnnpack")
            val eos = json.wholes("eos_ids").map { if (it in 0..Int.MAX_VALUE) it.toInt() else json.refuse("eos_ids", "$it") }
            if (eos.isEmpty()) json.refuse("eos_ids", "empty: a reply would never end")
            return BundleIndex(
                source = json.text("source"),
                randomWeights = json.flag("random_weights"),
                form = json.text("form"),
                window = json.count("window"),
                runtimeRequirement = json.text("runtime_requirement"),
                eosIds = eos,
                files = readFiles(json.child("files")),
            )
        }

        /** The `files` table of `bundle.json` and of `manifest.json`. */
        fun readFiles(json: Json): Map<String, FileEntry> {
            if (json.names.size > MOST_FILES) throw Refusal("files: ${json.names.size}, expected at most $MOST_FILES")
            return json.names.associateWith { name ->
                if (!isSafe(name) || name == NAME) json.refuse(name.take(80), "not a file name that may be in a bundle")
                val entry = json.child(name)
                val size = entry.whole("size")
                if (size !in 0..LARGEST_FILE) entry.refuse("size", "$size bytes")
                val digest = entry.text("sha256")
                if (!SHA256.matches(digest)) entry.refuse("sha256", "not 64 hexadecimal digits")
                FileEntry(size, digest)
            }
        }

        /** Whether a name is a plain relative path that no file system reads in another way. */
        fun isSafe(name: String): Boolean =
            name.length <= 200 && name.split('/').all { it.length <= 100 && PART.matches(it) && it != "." && it != ".." }

        private val PART = Regex("[A-Za-z0-9_-][A-Za-z0-9._-]*")
        private val SHA256 = Regex("[0-9a-f]{64}")

        private fun requireValue(json: Json, name: String, value: String) {
            val found = json.text(name)
            if (found != value) json.refuse(name, "'${found.take(40)}', this app takes $value; bundle again --for android")
        }
    }
}
