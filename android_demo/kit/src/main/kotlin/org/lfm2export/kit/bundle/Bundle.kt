package org.lfm2export.kit.bundle

import java.io.File
import java.security.MessageDigest
import java.util.concurrent.CancellationException

/** A verified bundle: nothing in [folder] but what `bundle.json` vouches for, every byte of it as it says. */
class Bundle private constructor(val folder: File, val index: BundleIndex, val manifest: Manifest) {
    val program: File get() = File(folder, manifest.program)
    val tokenizer: File get() = File(folder, TOKENIZER)

    /** The golden cases, as the bundle's maker recorded them. */
    fun golden(): Golden = Golden.parse(File(folder, Golden.NAME).readText(), manifest.vocabSize)

    companion object {
        const val TOKENIZER = "tokenizer.json"
        private val TEXTS = mapOf(Manifest.NAME to (16L shl 20), TOKENIZER to (64L shl 20), Golden.NAME to (16L shl 20))

        /**
         * Check every byte and open. [runtime] is the version of ExecuTorch that the app links. Refusal, in one line
         * that names the file, for anything missing, altered, added or made for a newer runtime.
         */
        fun open(folder: File, runtime: String, cancelled: () -> Boolean = { false }): Bundle {
            val root = folder.canonicalFile
            val index = readIndex(root)
            checkNothingElse(root, index)
            for ((name, limit) in TEXTS) {
                val entry = index.files[name] ?: throw Refusal("$name: missing from the bundle")
                if (entry.size > limit) throw Refusal("$name: larger than $limit bytes")
            }
            for ((name, entry) in index.files) verify(root, name, entry, cancelled)
            val manifest = Manifest.parse(File(root, Manifest.NAME).readText())
            checkAgreement(index, manifest)
            checkRuntime(manifest.runtimeRequirement, runtime)
            return Bundle(root, index, manifest)
        }

        private fun readIndex(root: File): BundleIndex {
            val file = File(root, BundleIndex.NAME)
            if (!file.isFile || file.canonicalFile != file) throw Refusal("$root: no ${BundleIndex.NAME}; is this an unpacked bundle?")
            if (file.length() > BundleIndex.LARGEST) throw Refusal("$file: ${file.length()} bytes")
            return BundleIndex.parse(file.readText())
        }

        private fun checkNothingElse(root: File, index: BundleIndex) {
            for (file in root.walkTopDown()) {
                if (file.canonicalFile != file) throw Refusal("$file: a link; bundles hold plain files")
                val name = file.relativeTo(root).invariantSeparatorsPath
                if (file.isFile && name != BundleIndex.NAME && name !in index.files) {
                    throw Refusal("$name: not listed in ${BundleIndex.NAME}")
                }
            }
        }

        private fun verify(root: File, name: String, entry: FileEntry, cancelled: () -> Boolean) {
            val file = File(root, name)
            if (!file.isFile) throw Refusal("$name: listed in ${BundleIndex.NAME} but missing")
            if (file.length() != entry.size) throw Refusal("$name: ${file.length()} bytes, ${BundleIndex.NAME} says ${entry.size}")
            val digest = MessageDigest.getInstance("SHA-256")
            file.inputStream().use { input ->
                val buffer = ByteArray(1 shl 16)
                while (true) {
                    if (cancelled()) throw CancellationException()
                    val count = input.read(buffer)
                    if (count < 0) break
                    digest.update(buffer, 0, count)
                }
            }
            if (digest.digest().hex() != entry.sha256) {
                throw Refusal("$name: SHA-256 differs from ${BundleIndex.NAME}; the file was altered or damaged")
            }
        }

        /** One file says what the other says; neither alone decides. */
        private fun checkAgreement(index: BundleIndex, manifest: Manifest) {
            val pairs = listOf(
                Triple("form", index.form, manifest.form),
                Triple("window", index.window, manifest.window),
                Triple("runtime_requirement", index.runtimeRequirement, manifest.runtimeRequirement),
            )
            for ((name, one, other) in pairs) {
                if (one != other) throw Refusal("$name: '$one' in ${BundleIndex.NAME}, '$other' in ${Manifest.NAME}")
            }
            for ((name, entry) in manifest.files) {
                val vouched = index.files[name] ?: continue // a bundle may leave out what no app needs
                if (vouched != entry) throw Refusal("$name: ${BundleIndex.NAME} and ${Manifest.NAME} differ")
            }
            if (manifest.program !in index.files) throw Refusal("${manifest.program}: missing from the bundle")
            val beyond = index.eosIds.firstOrNull { it >= manifest.vocabSize }
            if (beyond != null) throw Refusal("eos_ids: $beyond, the vocabulary has ${manifest.vocabSize}")
        }

        /** A program runs on the ExecuTorch it was made with and on newer ones of the same major version. */
        internal fun checkRuntime(requirement: String, runtime: String) {
            val wanted = REQUIREMENT.matchEntire(requirement)?.groupValues?.drop(1)?.map { it.toInt() }
                ?: throw Refusal("runtime_requirement: '${requirement.take(40)}', expected executorch==X.Y.Z")
            val linked = runtime.split('.').map { it.toInt() }
            val newEnough = compareValuesBy(linked, wanted, { it[1] }, { it[2] }) >= 0
            if (wanted[0] != linked[0] || !newEnough) {
                throw Refusal("the bundle needs $requirement, this app links ExecuTorch $runtime; build the app with that version")
            }
        }

        private val REQUIREMENT = Regex("""executorch==(\d{1,4})\.(\d{1,4})\.(\d{1,4})""")
    }
}
