"""The severities of harm, and the categories that data sets label: names as the published rows write them, in the order of their
cards.
"""

from srlhfv_jax.config import choose

SEVERITIES = ("safe", "minor", "moderate", "severe")  # least first: the levels of PKU-SafeRLHF and of Safe RLHF-V
LEVELS = len(SEVERITIES) - 1  # thresholds between them: more than safe, than minor, than moderate
SUMS = ("unsafe", "severity")  # what a verdict's scores are called beside those of categories

BEAVERTAILS_V = (
    "animal_abuse",
    "dangerous_behavior",
    "deception_in_personal_relationships",
    "discriminatory_depictions",
    "environmental_damage",
    "false_information",
    "financial_and_academic_fraud",
    "hacking_or_digital_crime",
    "harmful_health_content",
    "horror_and_gore",
    "identity_misuse_and_impersonation",
    "insulting_and_harassing_behavior",
    "pornographic_content",
    "privacy_invasion_and_surveillance",
    "psychological_harm_and_manipulation",
    "psychological_horror_and_dark_themes",
    "sensitive_information_in_key_areas",
    "sexual_crimes",
    "terrorism_or_extremism",
    "violence_and_physical_harm",
)

PKU_SAFERLHF = (
    "Endangering National Security",
    "Insulting Behavior",
    "Discriminatory Behavior",
    "Endangering Public Health",
    "Copyright Issues",
    "Violence",
    "Drugs",
    "Privacy Violation",
    "Economic Crime",
    "Mental Manipulation",
    "Human Trafficking",
    "Physical Harm",
    "Sexual Content",
    "Cybercrime",
    "Disrupting Public Order",
    "Environmental Damage",
    "Psychological Harm",
    "White-Collar Crime",
    "Animal Abuse",
)

BEAVERTAILS = (
    "animal_abuse",
    "child_abuse",
    "controversial_topics,politics",
    "discrimination,stereotype,injustice",
    "drug_abuse,weapons,banned_substance",
    "financial_crime,property_crime,theft",
    "hate_speech,offensive_language",
    "misinformation_regarding_ethics,laws_and_safety",
    "non_violent_unethical_behavior",
    "privacy_violation",
    "self_harm",
    "sexually_explicit,adult_content",
    "terrorism,organized_crime",
    "violence,aiding_and_abetting,incitement",
)

OPENAI_MODERATION = (
    "sexual",
    "hate",
    "violence",
    "harassment",
    "self-harm",
    "sexual/minors",
    "hate/threatening",
    "violence/graphic",
)

EMBEDDED = ("weapon", "sharp", "explosive", "fire", "medicine", "drug", "poison")  # hazards of the embedded task

TAXONOMIES = {"beavertails_v": BEAVERTAILS_V, "pku_saferlhf": PKU_SAFERLHF, "beavertails": BEAVERTAILS, "embedded": EMBEDDED}
TAXONOMIES |= {"openai_moderation": OPENAI_MODERATION}


def categories(name: str) -> tuple[str, ...]:
    """The categories of a taxonomy.

    Raises:
        UserError: there is none of this name.
    """
    return TAXONOMIES[choose(name, "the taxonomy", *TAXONOMIES)]
