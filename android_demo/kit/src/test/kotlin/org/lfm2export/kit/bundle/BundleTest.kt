package org.lfm2export.kit.bundle

import java.io.File
import java.nio.file.Files
import java.util.concurrent.CancellationException
import org.json.JSONObject
import org.junit.Assert.assertEquals
import org.junit.Assert.assertNull
import org.junit.Assert.assertThrows
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder
import org.lfm2export.kit.TinyBundle
import org.lfm2export.kit.assertRefused

class BundleTest {
    @get:Rule val temporary = TemporaryFolder()

    private val root by lazy { temporary.newFolder() }

    @Test fun soundFolderOpens() {
        val bundle = TinyBundle.open(TinyBundle.folder(root))
        assertEquals("tiny", bundle.index.source)
        assertEquals(listOf("conv_state.0", "key.1", "value.1"), bundle.manifest.state.map { it.name })
        assertEquals(1, bundle.golden().cases.size)
    }

    @Test fun everyAlteredFileIsRefused() {
        for (name in TinyBundle.files().keys) {
            val file = File(TinyBundle.folder(root), name)
            val bytes = file.readBytes()
            file.writeBytes(bytes.also { it[it.size / 2]++ })
            assertRefused("SHA-256") { TinyBundle.open(root) }
            file.appendBytes(ByteArray(1))
            assertRefused("bytes") { TinyBundle.open(root) }
            file.delete()
            assertRefused("missing") { TinyBundle.open(root) }
        }
    }

    @Test fun addedFileIsRefused() {
        File(TinyBundle.folder(root), "extra").writeText("x")
        assertRefused("not listed") { TinyBundle.open(root) }
    }

    @Test fun linksAreRefused() {
        val model = File(TinyBundle.folder(root), "model.pte")
        val elsewhere = File(temporary.newFolder(), "model.pte").also { model.copyTo(it) }
        model.delete()
        Files.createSymbolicLink(model.toPath(), elsewhere.toPath())
        assertRefused("link") { TinyBundle.open(root) }
    }

    @Test fun folderWithoutIndexIsRefused() = assertRefused("bundle.json") { TinyBundle.open(root) }

    @Test fun indexAndManifestMustAgree() {
        val changes = mapOf("form" to "resident", "window" to 63, "runtime_requirement" to "executorch==1.5.0")
        for ((name, value) in changes) {
            TinyBundle.folder(root) { it.put(name, value) }
            assertRefused(name) { TinyBundle.open(root) }
        }
    }

    @Test fun manifestMustVouchForTheSameProgram() {
        val manifest = TinyBundle.manifest().apply { getJSONObject("files").put("model.pte", TinyBundle.entry(ByteArray(3))) }
        TinyBundle.folder(root, manifest)
        assertRefused("differ") { TinyBundle.open(root) }
    }

    @Test fun endTokenOutsideTheVocabularyIsRefused() {
        TinyBundle.folder(root) { it.getJSONArray("eos_ids").put(TinyBundle.VOCAB) }
        assertRefused("eos_ids") { TinyBundle.open(root) }
    }

    @Test fun programNeedsItsRuntimeOrANewerOne() {
        for (runtime in listOf("1.5.1", "1.5.2", "1.6.0", "1.10.0")) Bundle.checkRuntime("executorch==1.5.1", runtime)
        for (runtime in listOf("1.5.0", "1.4.9", "2.5.1", "0.9.9")) {
            assertRefused("build the app") { Bundle.checkRuntime("executorch==1.5.1", runtime) }
        }
        for (text in listOf("", "onnxruntime==1.2.3", "executorch>=1.5.1", "executorch==1.5", "executorch==1.5.99999999999")) {
            assertRefused("runtime_requirement") { Bundle.checkRuntime(text, "1.5.1") }
        }
    }

    @Test fun verifyingCanBeStopped() {
        TinyBundle.folder(root)
        assertThrows(CancellationException::class.java) { Bundle.open(root, "1.5.1") { true } }
    }
}

class ManifestTest {
    private fun refused(fragment: String, manifest: JSONObject = TinyBundle.manifest(), bend: (JSONObject) -> Unit) =
        assertRefused(fragment) { Manifest.parse(manifest.also(bend).toString()) }

    private fun method(manifest: JSONObject) = manifest.getJSONArray("methods").getJSONObject(0)

    @Test fun bothFormsAreRead() {
        assertEquals(3, TinyBundle.parsedManifest("explicit").state.size)
        assertEquals(0, TinyBundle.parsedManifest("resident").state.size)
    }

    @Test fun bfloat16StateIsRefusedWithTheRemedy() {
        refused("--set cache=float32") { method(it).getJSONArray("inputs").put(TinyBundle.tensor("key.9", "bfloat16", 1, 2)) }
    }

    @Test fun otherSchemasTargetsAndFormsAreRefused() {
        val changes = mapOf("schema_version" to 2, "target" to "qnn", "transport" to "slice", "form" to "other", "window" to 0)
        for ((name, value) in changes) refused(name) { it.put(name, value) }
    }

    @Test fun wrongInputsAreRefused() {
        refused("inputs") { method(it).getJSONArray("inputs").remove(0) }
        refused("inputs") { method(it).getJSONArray("inputs").getJSONObject(2).put("written", false) }
        refused("inputs") { method(it).getJSONArray("inputs").getJSONObject(2).put("dtype", "int64") }
        refused("mystery.0") { method(it).getJSONArray("inputs").getJSONObject(2).put("name", "mystery.0") }
        refused("key.1") { it.put("window", 65) }
        refused("sliding_key.2", TinyBundle.slidingManifest()) { method(it).getJSONArray("inputs").getJSONObject(5).getJSONArray("shape").put(0, 2) }
        refused("shape") { method(it).getJSONArray("inputs").getJSONObject(2).getJSONArray("shape").put(0, -4) }
        refused("dtype") { method(it).getJSONArray("inputs").getJSONObject(2).put("dtype", "float8") }
    }

    @Test fun wrongOutputsAreRefused() {
        refused("outputs") { method(it).getJSONArray("outputs").getJSONObject(0).put("dtype", "float16") }
        refused("outputs") { it.getJSONObject("source").getJSONObject("config").put("vocab_size", 9) }
        refused("outputs") { method(it).getJSONArray("outputs").remove(0) }
    }

    private fun verifier(manifest: JSONObject) = manifest.getJSONArray("methods").getJSONObject(1)

    @Test fun draftsOfAnotherProgramAreRefused() {
        refused("inputs") { verifier(it).put("file", "other.pte") }
        refused("inputs") { verifier(it).getJSONArray("inputs").remove(2) }
        refused("columns.key.1") { verifier(it).getJSONArray("outputs").getJSONObject(1).put("name", "columns.key.1") }
        refused("sliding_key.2", TinyBundle.slidingManifest()) { verifier(it).getJSONArray("outputs").remove(2) }
        assertNull(Manifest.parse(TinyBundle.manifest().also { it.getJSONArray("methods").remove(1) }.toString()).verifier)
    }

    @Test fun programThatNobodyVouchesForIsRefused() = refused("not listed") { method(it).put("file", "other.pte") }

    @Test fun everyMissingFieldIsRefused() {
        for (name in TinyBundle.manifest().keys().asSequence().toList()) refused(name) { it.remove(name) }
    }
}

class GoldenTest {
    private fun refused(fragment: String, bend: (JSONObject) -> Unit) =
        assertRefused(fragment) { Golden.parse(TinyBundle.golden().also(bend).toString(), TinyBundle.VOCAB) }

    private fun case(golden: JSONObject) = golden.getJSONArray("cases").getJSONObject(0)

    private fun step(golden: JSONObject) = case(golden).getJSONArray("steps").getJSONObject(0)

    @Test fun casesThatProveNothingAreRefused() {
        refused("cases") { it.getJSONArray("cases").remove(0) }
        refused("steps") { case(it).getJSONArray("steps").remove(0) }
        refused("prompt") { case(it).put("prompt", org.json.JSONArray()) }
        for (limit in listOf(0, 1, -1, 1e9)) refused("max_error") { it.put("max_error", limit) }
    }

    @Test fun tokensOutsideTheVocabularyAreRefused() {
        refused("top") { step(it).getJSONArray("top").put(0, TinyBundle.VOCAB) }
        refused("prompt") { case(it).getJSONArray("prompt").put(0, -1) }
    }

    @Test fun stepsMustHaveALogitForEachToken() {
        refused("logits") { step(it).getJSONArray("logits").put(0.5) }
        refused("scale") { step(it).put("scale", 0) }
    }
}
