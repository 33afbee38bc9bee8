plugins {
    id("com.android.library")
    id("org.jetbrains.kotlin.android")
}

android {
    namespace = "org.lfm2export.kit"
    compileSdk = 35

    defaultConfig { minSdk = 26 }

    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_1_8
        targetCompatibility = JavaVersion.VERSION_1_8
    }

    kotlinOptions {
        jvmTarget = "1.8"
        allWarningsAsErrors = true
    }
}

dependencies {
    // the exporter's version: a program runs on the ExecuTorch it was made with, or a newer one
    implementation("org.pytorch:executorch-android:1.5.1")
    api("org.jetbrains.kotlinx:kotlinx-coroutines-core:1.8.0") // the tests' version

    testImplementation("junit:junit:4.13.2")
    testImplementation("org.json:json:20240303") // android.jar has only stubs of it
}
